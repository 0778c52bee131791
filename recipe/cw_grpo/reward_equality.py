r"""Do two spelled answers say the same? Lists, tuples, sets, names and units are taken apart here; the formulas within
are read by math-verify's parser (latex2sympy2_extended) and compared by their values.

Two formulas are equal if they agree wherever their letters are given numbers. A formula with a sign that the parser
does not read, or reads wrongly, is equal to nothing but itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from itertools import product

import mpmath
import sympy
from latex2sympy2_extended import latex2sympy
from reward_spelling import ACCENTS, FUNCTIONS, GREEK, unit_of

DIGITS = 1000
"""Digits of the first comparison of two numbers; the second one has twice as many."""

MEMBERS_LIMIT = 12
"""Members of a list that are compared beyond those written alike; links of a chain of equalities."""

INDEX = r"_\{(?:[^{}]|\{[^{}]*\})*\}"
LETTER = rf"(?:\\(?:{'|'.join(sorted(ACCENTS))})\{{[^{{}}]*\}}|\\(?:{'|'.join(GREEK)})(?![a-zA-Z]) ?|(?<!\\)[a-zA-Z])"
SYMBOL = rf"{LETTER}(?:'|{INDEX})*"
MEASURES = "area|perimeter|volume|length|sum|total|probability|max|min|cost|average|mean|median|slope|speed"
WORD = rf"\\text\{{(?:{MEASURES}|\w+(?=\}}\())\}}"
CALL = r"(?:\^\{-1\})?\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
PLAIN = rf"(?:m?\\angle |\\triangle )?(?:{SYMBOL}|{WORD})+(?:{CALL})*"
NAME = (
    rf"(?:\\(?:{'|'.join(sorted(FUNCTIONS))}) ?)?(?:{PLAIN}|\|{PLAIN}\||\\frac\{{{PLAIN}\}}\{{{PLAIN}\}}"
    rf"|{PLAIN}[:/]{PLAIN}|\({PLAIN}(?:,{PLAIN})+\))"
)
RELATIONS: dict[str, Callable] = {
    r"\le": lambda order: order <= 0,
    r"\ge": lambda order: order >= 0,
    r"\ne": lambda order: order != 0,
    "<": lambda order: order < 0,
    ">": lambda order: order > 0,
}
RELATION = r"(\\(?:le|ge|ne)(?![a-z]) ?|[<>])"


LETTERS = re.compile(rf"({SYMBOL})|\\[a-zA-Z]+ ?")


class Unreadable(Exception):
    """Not a formula that math-verify's parser reads, and reads rightly."""


# --- structure ----------------------------------------------------------------------------------------------------


def split(text: str, *separators: str) -> list[str]:
    """Split at separators that stand outside all brackets. All kinds of bracket count alike."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        found = next((s for s in separators if depth == 0 and text.startswith(s, i)), "")
        if found:
            parts.append(text[start:i].strip())
            start = i + len(found)
        i += len(found) or 1
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> bool:
    """Does one pair of brackets stand round everything?"""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth <= 0:
            return i == len(text) - 1 > 0
    return False


def is_set(text: str) -> bool:
    return text.startswith(r"\{") and enclosed(text[1:]) and "|" not in text


def is_tuple(text: str) -> bool:
    return text[:1] in ("(", "[") and enclosed(text) and len(split(text[1:-1], ",", ";")) > 1


def bare(text: str) -> str:
    """Without parentheses round a single object."""
    while text[:1] == "(" and text[-1:] == ")" and enclosed(text) and not is_tuple(text):
        text = text[1:-1]
    return text


def members(text: str) -> list[str]:
    r"""What a list or a set in braces holds; a member with `\pm` is two."""
    parts = split(text[2:-2] if is_set(text) else text, ",", ";", r"\and", r"\or")
    return [choice for part in parts if part for choice in signs(part)]


def signs(text: str) -> list[str]:
    r"""Every choice of the signs `\pm`; `\mp` is the opposite of the first."""
    places = len(re.findall(r"\\pm(?![a-z])", text))
    choices = []
    for chosen in product("+-", repeat=places if places < 5 else 0):
        left = iter(chosen)
        one = re.sub(r"\\pm(?![a-z]) ?", lambda _, left=left: next(left), text) if chosen else text
        choices.append(re.sub(r"(^|[(,=])\+", r"\1", re.sub(r"\\mp ?", "-" if chosen[:1] == ("+",) else "+", one)))
    return list(dict.fromkeys(choices))


def named(text: str) -> tuple[str, list[str]]:
    """The name of what is stated, empty if there is none, and the links of the chain of equalities behind it."""
    links = split(text, "=")
    if len(links) > 1 and re.fullmatch(NAME, links[0], re.IGNORECASE):
        return links[0], links[1:]
    if len(links) == 1 and (m := re.match(rf"({NAME})\\in(?![a-z])", text)):
        return m[1], [text[m.end() :].strip()]
    if m := re.fullmatch(r"([A-Z])(\(.*\))", text):
        return (m[1], [m[2]]) if is_tuple(m[2]) else ("", links)
    return "", links


def values(items: list[str]) -> list[str]:
    """The items without their names."""
    return [links[-1] if name else item for item in items for name, links in [named(item)]]


def in_order(items: list[str]) -> list[str]:
    """The values of `x=1` and `y=2` in the order of the names, others as they stand."""
    names = [named(item)[0] for item in items]
    return values([item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0])])


# --- comparing ----------------------------------------------------------------------------------------------------


def same(ref: str, ans: str) -> bool:
    """Is an answer equal to a reference? Both are spelled."""
    ref, ans = bare(ref), bare(ans)
    return ref == ans or any(test(ref, ans) for test in TESTS)


def same_list(ref: str, ans: str) -> bool:
    refs, answers = members(ref), members(ans)
    sets = is_set(ref) or is_set(ans)
    if max(len(refs), len(answers)) < 2 and not sets:
        return False
    if is_tuple(ref) and not sets and len(answers) > 1:  # the brackets left out
        return same_tuple(ref, f"{ref[0]}{','.join(in_order(answers))}{ref[-1]}")
    if is_tuple(ans) and all(named(r)[0] for r in refs):
        return same_tuple(f"({','.join(in_order(refs))})", ans)
    if len(answers) > 1 and len(refs) == 1:
        refs = spread(ref)
    if len(refs) > 1 and len(answers) == 1:
        answers = spread(ans)
    if any(len({named(i)[0] for i in items} - {""}) < len(items) for items in (refs, answers)):
        refs, answers = values(refs), values(answers)
    return matched(distinct(refs), distinct(answers)) if sets else matched(refs, answers)


def spread(text: str) -> list[str]:
    """`(x,y)=(1,2)` as `x=1` and `y=2`."""
    name, links = named(text)
    if is_tuple(name) and is_tuple(links[0]):
        return [f"{n}={v}" for n, v in zip(split(name[1:-1], ","), split(links[0][1:-1], ",", ";"), strict=False)]
    return members(text)


def distinct(items: list[str]) -> list[str]:
    kept: list[str] = []
    for item in dict.fromkeys(items):
        if len(kept) > MEMBERS_LIMIT or not any(same(k, item) for k in kept):
            kept.append(item)
    return kept


def matched(refs: list[str], answers: list[str]) -> bool:
    """Is each answer equal to one reference, and each reference to one answer?"""
    if len(refs) != len(answers):
        return False
    alike = Counter(refs) & Counter(answers)
    refs, answers = list((Counter(refs) - alike).elements()), list((Counter(answers) - alike).elements())
    if len(refs) > MEMBERS_LIMIT:
        return False
    for answer in answers:
        found = next((i for i, ref in enumerate(refs) if same(ref, answer)), None)
        if found is None:
            return False
        del refs[found]
    return True


def same_tuple(ref: str, ans: str) -> bool:
    if not (is_tuple(ref) and is_tuple(ans)) or ref[0] + ref[-1] != ans[0] + ans[-1]:
        return False
    refs, answers = split(ref[1:-1], ",", ";"), split(ans[1:-1], ",", ";")
    return len(refs) == len(answers) and all(map(same, refs, answers))


def same_named(ref: str, ans: str) -> bool:
    """An answer may name what it states, or leave the reference's name out, but not change it."""
    (ref_name, ref_links), (name, links) = named(ref), named(ans)
    if len(ref_links) > 1 or (len(links) == 1 and not name and not ref_name) or len(links) > MEMBERS_LIMIT:
        return False
    value = ref_links[0]
    if name and ref_name and name != ref_name:
        ours, theirs = (re.fullmatch(r"(\w)\((\w)\)", n) for n in (name, ref_name))
        if ours and theirs and ours[1] == theirs[1]:  # f(n)=2n is f(x)=2x
            links = [re.sub(rf"(?<![\\a-zA-Z]){ours[2]}(?![a-zA-Z])", theirs[2], link) for link in links]
        elif name != re.sub(INDEX, "", ref_name) and re.sub(INDEX, "", name) != ref_name:
            return False  # an index may be left out
    return all(same(value, link) for link in links)


def same_equation(ref: str, ans: str) -> bool:
    """Is the difference of the sides the same but for a constant factor?"""
    sides = split(ref, "="), split(ans, "=")
    if [len(s) for s in sides] != [2, 2]:
        return False
    return proportional(*(f"({left})-({right})" for left, right in sides))


def same_inequality(ref: str, ans: str) -> bool:
    """Inequalities in several letters; those in one are regions."""
    sides = re.split(RELATION, ref), re.split(RELATION, ans)
    if [len(s) for s in sides] != [3, 3]:
        return False
    small = [(a, b) if sign.strip() in ("<", r"\le", r"\ne") else (b, a) for a, sign, b in sides]
    strict = [sign.strip().replace(">", "<").replace("ge", "le") for _, sign, _ in sides]
    return strict[0] == strict[1] and proportional(*(f"({a})-({b})" for a, b in small), positive=strict[0] != r"\ne")


def same_matrix(ref: str, ans: str) -> bool:
    rows = matrix(ref), matrix(ans)
    return (
        None not in rows
        and [len(r) for r in rows[0]] == [len(r) for r in rows[1]]
        and all(same(r, a) for row in zip(*rows, strict=True) for r, a in zip(*row, strict=True))
    )


def matrix(text: str) -> list[list[str]] | None:
    r"""The cells of a matrix in any brackets; a factor before it goes into each."""
    if text[:1] + text[-1:] in ("[]", "()") and enclosed(text):
        text = text[1:-1]
    m = re.fullmatch(
        r"(.*?)\\begin\{([pbB]?matrix|array|smallmatrix)\}(?:\{[^{}]*\})?(.*?)\\end\{\2\}", text, re.DOTALL
    )
    if m is None or r"\begin" in m[3]:
        return None
    factor = m[1].removesuffix(r"\cdot").strip()
    rows = [row.split("&") for row in m[3].removesuffix(r"\\").split(r"\\")]
    return [[f"({factor})\\cdot({cell})" if factor else cell for cell in row] for row in rows]


def same_words(ref: str, ans: str) -> bool:
    words = spelled_words(ref), spelled_words(ans)
    return words[0] is not None and words[0] == words[1]


def spelled_words(text: str) -> str | None:
    """Words without capitals, articles and the s of the plural; None for a formula."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    if not re.fullmatch(r"[\w\s'.,()\-]*", plain) or not re.search(r"[A-Za-z]{2}[a-z]|[^\W\d_a-zA-Z]", plain):
        return None
    words = [w for w in plain.casefold().replace(".", " ").split() if w not in ("the", "a", "an")]
    return "".join(words).removesuffix("s")


def same_choice(ref: str, ans: str) -> bool:
    """The letter of a multiple choice, alone or before what it stands for."""
    (letter, said), (ours, claim) = choice(ref), choice(ans)
    if letter and ours:
        return letter == ours and (not said or not claim or same(said, claim))
    return bool(letter and said and same(said, ans))


def choice(text: str) -> tuple[str, str]:
    m = re.fullmatch(
        r"(?:\\text\{(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\}:?)?(?:\(([A-J])\)|([A-J])[).:]?|([A-J])\)(.+)|\(([A-J])\)(.+))",
        text,
    )
    if m is None:
        return "", ""
    said = (m[4] or m[6] or "").lstrip(":.")
    return ("", "") if re.search(r"[A-J]\)|^[^\w\\($|]|\\or|\\and", said) else (m[1] or m[2] or m[3] or m[5], said)


def same_time(ref: str, ans: str) -> bool:
    times = clock(ref), clock(ans)
    return (
        None not in times
        and times[0][:2] == times[1][:2]
        and ("" in (times[0][2], times[1][2]) or times[0] == times[1])
    )


def clock(text: str) -> tuple[int, str, str] | None:
    m = re.fullmatch(r"(\d{1,2}):([0-5]\d)(?:\\text\{|\()?([ap]?)\.?m?\.?[)}]?", text, re.IGNORECASE)
    return (int(m[1]), m[2], m[3].lower()) if m else None


def same_ratio(ref: str, ans: str) -> bool:
    refs, answers = split(ref, ":"), split(ans, ":")
    if len(refs) == 1 or (clock(ref) and clock(ans)):
        return False
    if len(answers) == 1 and len(refs) == 2:
        return same_value(rf"\frac{{{refs[0]}}}{{{refs[1]}}}", ans)
    first = rf"\cdot({refs[0]})", rf"\cdot({answers[0]})"
    return len(refs) == len(answers) and all(
        same_value(f"({r}){first[1]}", f"({a}){first[0]}") and not same_value(a, "0")
        for r, a in zip(refs, answers, strict=True)
    )


def same_numeral(ref: str, ans: str) -> bool:
    """Digits in a base, which may be left out where the reference names it."""
    numeral = re.compile(r"\(?([0-9A-F]+)\)?(?:_\{(\d+)\})?")
    r, a = numeral.fullmatch(ref), numeral.fullmatch(ans)
    valid = r and r[2] and all(int(digit, 16) < int(r[2]) for digit in r[1])
    return bool(valid and a and r[1] == a[1] and a[2] in (None, r[2]))


def same_quantity(ref: str, ans: str) -> bool:
    """A unit may be left out or added, but not be another one; n per cent is n or n/100 where one side has the sign."""
    (ref_value, ref_unit), (value, unit) = peel(ref), peel(ans)
    if ref_unit and unit and ref_unit != unit:
        return False
    if same_value(ref_value, value):
        return True
    if bool(ref_unit) == bool(unit):
        return False
    factor = {"%": r"\cdot\frac{1}{100}", "deg": r"\cdot\frac{\pi}{180}"}.get(ref_unit or unit, "")
    return bool(factor) and same_value(f"({ref_value}){factor * bool(ref_unit)}", f"({value}){factor * bool(unit)}")


def peel(text: str) -> tuple[str, str]:
    """Split a value from the unit behind it, or the money before it."""
    text = re.sub(r"^(-?)(\\text\{[^{}\w]+\})(.+)", r"\1\3\2", text)
    if (m := re.fullmatch(r"(.+)\^\{\\circ\}(?:(?:\\text\{)?([CF])\}?)?", text)) and not re.search(FUNCTION, m[1]):
        return m[1], "deg" + (m[2] or "")
    m = re.fullmatch(
        r"(.+?)((?:/|\\cdot ?)?(?:\\mu ?)?\\text\{[^{}]*\}(?:\^\{-?\d\}|/|\\cdot ?|\\mu ?|\\text\{[^{}]*\})*)", text
    )
    unit = m and unit_of(m[2])
    return (m[1], unit) if unit else (text, "")


# --- sets of real numbers -----------------------------------------------------------------------------------------


def same_region(ref: str, ans: str) -> bool:
    """Intervals, inequalities in one letter and their unions: do they hold the same numbers?"""
    marks: list = []
    letters: set[str] = set()
    kinds = [re.search(rf"{RELATION}|\\cup|\\cap|\\setminus|\\mathbb|\\emptyset|\\\{{\\\}}", t) for t in (ref, ans)]
    if not any(kinds):
        return False
    try:
        with mpmath.workdps(50):
            inside = [region(text, marks, letters) for text in (ref, ans)]
            ends = sorted({mpmath.nstr(m, 40): m for m in marks if mpmath.isfinite(m)}.values())
            between = [(a + b) / 2 for a, b in zip(ends, ends[1:], strict=False)]
            samples = [*ends, *between, *([ends[0] - 1, ends[-1] + 1] if ends else [mpmath.mpf(0)])]
            return len(letters) < 2 and all(inside[0](x) == inside[1](x) for x in samples)
    except (Unreadable, TypeError, KeyError):
        return False


def region(text: str, marks: list, letters: set[str]) -> Callable:
    """Whether a number lies in a set; the ends of its intervals are added to `marks`, the unknown to `letters`."""
    text = bare(text)
    if m := re.fullmatch(r"\\\{(\w)(?:\\in ?\\mathbb\{R\})?[|:](.*)\\\}", text):
        letters.add(coded(m[1])[1:])
        return region(m[2], marks, letters)
    name, links = named(text)
    if re.fullmatch(SYMBOL, name) and len(links) == 1:
        letters.add(coded(name)[1:])
        return region(links[0], marks, letters)
    for separators, together in (((r"\cup", r"\or"), any), ((r"\cap", r"\and"), all), ((r"\setminus",), None)):
        parts = split(text, *separators)
        if len(parts) > 1:
            inner = [region(part, marks, letters) for part in parts]
            if together is None:
                return lambda x: inner[0](x) and not any(part(x) for part in inner[1:])
            return lambda x: together(part(x) for part in inner)
    if text in (r"\mathbb{R}", r"\emptyset", r"\{\}"):
        return lambda x: "R" in text
    if text[:1] in ("[", "(") and enclosed(text) and len(split(text[1:-1], ",")) == 2:
        low, high = (end(t) for t in split(text[1:-1], ","))
        marks += [low, high]
        return lambda x: low < x < high or (x == low and text[0] == "[") or (x == high and text[-1] == "]")
    parts = [part for item in split(text, ",") for part in members(item)]
    if is_set(text) or (len(parts) == 1 and not re.search(rf"{RELATION}|=", text)):
        points = [end(part) for part in parts]
        marks += points
        return lambda x: x in points
    if len(parts) > 1:  # intervals one by one
        inner = [region(part, marks, letters) for part in parts]
        return lambda x: any(part(x) for part in inner)
    return inequality(text, marks, letters)


def inequality(text: str, marks: list, letters: set[str]) -> Callable:
    chain = re.split(RELATION, text)
    trees = [end(t) if re.fullmatch(r"[-+]?\\infty ?", t) else formula(t) for t in chain[::2]]
    unknown = set().union(*(t.free_symbols for t in trees if isinstance(t, sympy.Basic)))
    if len(chain) < 3 or len(unknown) != 1:
        raise Unreadable(text)
    letter = unknown.pop()
    letters.add(letter.name)
    for a, b in zip(trees, trees[1:], strict=False):
        if isinstance(a, sympy.Basic) and isinstance(b, sympy.Basic):
            marks += [rounded(mpmath.mpf(str(root.evalf(50)))) for root in roots(a - b, letter)]
    tests = [RELATIONS[sign.strip()] for sign in chain[1::2]]

    def holds(x) -> bool:
        at = [value(t, {letter.name: x}) if isinstance(t, sympy.Basic) else t for t in trees]
        return all(test(order(a, b)) for test, a, b in zip(tests, at, at[1:], strict=False))

    return holds


def roots(tree: sympy.Basic, letter: sympy.Symbol) -> list:
    real = sympy.Dummy(real=True)
    try:
        return [root for root in sympy.solve(tree.subs(letter, real), real) if root.is_real]
    except NotImplementedError as e:
        raise Unreadable(tree) from e


def order(a, b) -> int:
    """-1, 0 or 1; numbers that agree in 30 digits are equal."""
    return 0 if a == b or abs(a - b) < mpmath.mpf(10) ** -30 * max(abs(a), abs(b), 1) else -1 if a < b else 1


def end(text: str):
    """A number at the end of an interval, rounded so that equal ends are the same."""
    if m := re.fullmatch(r"([-+]?)\\infty ?", text):
        return mpmath.mpf(m[1] + "inf")
    return rounded(mpmath.mpf(value(formula(text), {})))


def rounded(number):
    return mpmath.mpf(mpmath.nstr(number, 40))


# --- values -------------------------------------------------------------------------------------------------------

FUNCTION = rf"\\(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![a-z])"
READ = re.compile(
    rf"(?:{FUNCTION} ?|\\(?:frac|sqrt|cdot|pi|binom|lfloor|rfloor|lceil|rceil|vec)(?![a-z]) ?|\\log_|[-+/^(){{}}|!0-9eiv\[\]])+"
)
DERIVATIVE = re.compile(rf"\\frac\{{d(?:\^\{{(\d)\}})?\s?({SYMBOL})\}}\{{d({SYMBOL})(?:\^\{{\d\}})?\}}")
FUNCTIONS_OF_ONE = {
    "Abs": "fabs", "ceiling": "ceil", "csc": "csc", **{name: name for name in
    "exp sin cos tan cot sec asin acos atan acot asec acsc sinh cosh tanh asinh acosh atanh floor factorial".split()},
}  # fmt: skip


def symbol_key(symbol: str) -> str:
    r"""A letter with its primes and index in one spelling: `x_{\max}'` is `x'_{max}`."""
    index = "".join(re.findall(INDEX, symbol))
    letter = (
        re.sub(rf"{INDEX}|'|\s", "", symbol)
        .replace("overline", "bar")
        .replace("overrightarrow", "vec")
        .replace("wide", "")
    )
    return letter + "'" * re.sub(INDEX, "", symbol).count("'") + re.sub(r"\\text|\\(?=max|min)|[{}\s]", "", index)


def coded(symbol: str) -> str:
    """A name that the parser keeps apart from all others, and reads as one token."""
    key = symbol_key(symbol)
    return symbol if key in ("e", "i") else rf"\vec{{v{int.from_bytes(blake2b(key.encode(), digest_size=8).digest())}}}"


@lru_cache(maxsize=1024)
def formula(text: str) -> sympy.Basic:
    """math-verify's reading of a formula, with names in place of its symbols.

    Raises:
        Unreadable: the parser does not read it, or not faithfully.
    """
    if re.fullmatch(r"[A-Za-z]{3,}", text) and re.search(r"[aeiou]", text):
        raise Unreadable(text)  # a word
    text = re.sub(r"\\dot\{(\w)\}", r"\1'", re.sub(r"\\ddot\{(\w)\}", r"\1''", text))
    text = DERIVATIVE.sub(lambda m: m[2] + "'" * int(m[1] or 1), text)
    text = re.sub(r"\\lg(?![a-z])", r"\\log_{10}", text)
    text = LETTERS.sub(lambda m: coded(m[1]) if m[1] else m[0], text)
    text = re.sub(r"(\d+|\\vec\{\w+\})\^\{\\circ\}", r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = re.sub(r"(?<!\\sqrt)\[|\](?!\{)", lambda m: "(" if m[0] == "[" else ")", text)
    text = re.sub(r"(\d+|\\vec\{\w+\})(!+)(?=\^)", r"(\1\2)", text)
    text = re.sub(
        r"(\d|\)|\\vec\{\w+\}|\\frac\{\d+\}\{\d+\})(?=\(|\\frac|\\binom)", r"\1\\cdot ", text
    )  # else added, as in 2 1/2
    text = text.replace("+-", "-").replace("--", "+")
    if not READ.fullmatch(text) or re.search(r"\d\\&", text):
        raise Unreadable(text)
    try:
        return latex2sympy(text, is_real=None, normalization_config=None)
    except RecursionError:
        raise
    except Exception as e:  # the parser raises anything
        raise Unreadable(text) from e


def value(tree: sympy.Basic, at: dict):
    """The number that a formula is with these numbers for its letters; roots of odd order are real.

    Raises:
        Unreadable: it is no number.
    """
    name = type(tree).__name__
    if tree.is_Rational:
        return mpmath.mpf(tree.p) / tree.q
    if tree.is_Symbol:
        return mpmath.mpc(0, 1) if tree.name == "i" else at[tree.name]
    if tree in (sympy.pi, sympy.E):
        return +(mpmath.pi if tree == sympy.pi else mpmath.e)
    if name == "Pow" or name == "exp":
        base, power = (value(arg, at) for arg in (tree.args if name == "Pow" else (sympy.E, *tree.args)))
        root = tree.args[-1].doit() if name == "Pow" else None
        if getattr(root, "is_Rational", False) and root.q % 2 and root.q > 1 and mpmath.im(base) == 0 and base < 0:
            return (-1) ** root.p * mpmath.power(-base, power)
        return mpmath.power(base, power)
    args = [value(arg, at) for arg in tree.args]
    if name in ("Add", "Mul"):
        return mpmath.fsum(args) if name == "Add" else mpmath.fprod(args)
    if name == "log":
        return mpmath.log(args[0]) / (mpmath.log(args[1]) if args[1:] else 1)
    if name == "binomial":
        return mpmath.binomial(*args)
    if name == "UnevaluatedExpr":
        return args[0]
    if name not in FUNCTIONS_OF_ONE:
        raise Unreadable(name)
    return getattr(mpmath, FUNCTIONS_OF_ONE[name])(*args)


def points(trees: list[sympy.Basic]) -> list[dict]:
    """Numbers for the letters, the same for the same letter: whole ones where something is counted or rounded,
    positive ones where a root or a logarithm is taken and no absolute value, else of both signs.
    """
    letters = sorted({s.name for t in trees for s in t.free_symbols if s.name != "i"})
    if not letters:
        return [{}]
    nodes = [node for t in trees for node in sympy.preorder_traversal(t)]
    counted = any(type(n).__name__ in ("floor", "ceiling", "factorial", "binomial") for n in nodes) or any(
        n.is_Pow and n.args[0].is_number and n.args[0].could_extract_minus_sign() and n.args[1].free_symbols
        for n in nodes
    )
    rooted = any(
        (n.is_Pow and not n.args[1].is_Integer and n.args[1].doit().is_Integer is not True or type(n).__name__ == "log")
        and n.args[0].free_symbols
        for n in nodes
    )
    signed = not rooted or any(type(n).__name__ == "Abs" for n in nodes)
    found = []
    for k in range(16 if counted else 4):
        codes = {s: int.from_bytes(blake2b(f"{s} {k}".encode(), digest_size=4).digest()) for s in letters}
        if counted:
            found.append({s: mpmath.mpf(2 + code % 40) for s, code in codes.items()})
        else:
            found.append(
                {
                    s: mpmath.mpf(1 + code % 9973) / 4001 * (-1 if signed and (code >> 16) % 2 else 1)
                    for s, code in codes.items()
                }
            )
    return found


def same_value(ref: str, ans: str) -> bool:
    if re.fullmatch(r"[-+]?\\infty ?", ref):
        return ref.lstrip("+") == ans.lstrip("+")
    try:
        if (
            len(wrt := [{symbol_key(m[3]) for m in DERIVATIVE.finditer(t)} for t in (ref, ans)])
            and all(wrt)
            and wrt[0] != wrt[1]
        ):
            return False
        trees = [formula(ref), formula(constants(ref, ans))]
        if trees[0] == trees[1]:
            return True
        return everywhere(points(trees), lambda at: [value(tree, at) for tree in trees])
    except (Unreadable, TypeError, KeyError):
        return False


def constants(ref: str, ans: str) -> str:
    """The answer with the reference's spelling of a constant of integration, C or c."""
    theirs, ours = ({m[1] for m in LETTERS.finditer(t) if m[1]} for t in (ref, ans))
    swapped = {s for s in ours - theirs if s[0] in "cC" and s.swapcase() in theirs - ours}
    return LETTERS.sub(lambda m: m[0].swapcase() if m[1] in swapped else m[0], ans) if swapped else ans


def proportional(ref: str, ans: str, positive: bool = False) -> bool:
    """Is the quotient of two formulas a constant other than 0?"""
    try:
        trees = [formula(ref), formula(constants(ref, ans))]
        first, *rest = points(trees)
        if not rest:
            return False

        def crossed(at: dict) -> list:
            (r, a), (r0, a0) = ([value(tree, p) for tree in trees] for p in (at, first))
            if a == 0 or a0 == 0 or (positive and mpmath.re(r / a) <= 0):
                raise Unreadable(ans)
            return [r * a0, r0 * a]

        return everywhere(rest, crossed)
    except (Unreadable, TypeError, KeyError):
        return False


def everywhere(places: list[dict], pair: Callable[[dict], list]) -> bool:
    """Do two formulas agree at all places where both have a value?"""
    verdicts = []
    for at in places:
        try:
            verdicts.append(agree(lambda at=at: pair(at)))
        except (ZeroDivisionError, ValueError):  # a pole
            continue
        if not verdicts[-1]:
            return False
    return len(verdicts) > len(places) // 6


def agree(pair: Callable[[], list]) -> bool:
    """Are two numbers equal? Their difference then is 0, or it shrinks as digits are added."""
    differences = []
    for digits in (30, DIGITS, 2 * DIGITS):
        with mpmath.workdps(digits):
            a, b = pair()
            if not (mpmath.isfinite(a) and mpmath.isfinite(b)):
                return False
            difference, size = abs(a - b), max(abs(a), abs(b))
            if digits == 30 and size > 1e-9 and difference > size * mpmath.mpf(10) ** -12:
                return False
            differences.append(difference)
    _, first, second = differences
    return (
        second == 0
        or second <= size * mpmath.mpf(10) ** (-1.5 * DIGITS)
        or second <= first * mpmath.mpf(10) ** (-0.5 * DIGITS)
    )


TESTS = (same_list, same_tuple, same_named, same_words, same_choice, same_time, same_ratio, same_numeral, same_matrix,
         same_equation, same_region, same_inequality, same_quantity)  # fmt: skip


def readable(text: str) -> bool:
    """Can an answer written otherwise be found equal to this text, spelled?"""
    text = bare(text)
    parts = split(text[1:-1], ",", ";") if is_tuple(text) else members(text)
    if len(parts) > 1:
        return all(map(readable, parts))
    if is_set(text) or named(text)[0]:
        return all(map(readable, parts if is_set(text) else named(text)[1]))
    rows = matrix(text)
    if rows is not None:
        return all(readable(cell) for row in rows for cell in row)
    return bool(
        spelled_words(text)
        or clock(text)
        or same_numeral(text, re.sub("_.*", "", text))
        or choice(text)[0]
        or same_region(text, text)
    ) or all(is_formula(peel(side)[0]) for side in re.split(rf"[=:]|{RELATION}", text)[::2])


def is_formula(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[-+]?\\infty ?", text)) or formula(text) is not None
    except Unreadable:
        return False
