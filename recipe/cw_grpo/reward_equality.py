# SPDX-License-Identifier: Apache-2.0
r"""Do two spelled answers say the same? Lists, tuples, names and units are taken apart here; the formulas within are
read by math-verify's parser (latex2sympy2_extended) and compared by their values.

Two formulas are equal if they agree wherever their letters are given numbers. A formula with a sign that the parser
does not read, or reads wrongly, is equal to nothing but itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from itertools import product

import mpmath
import sympy
from latex2sympy2_extended import latex2sympy
from reward_spelling import ACCENTS, FUNCTIONS, GREEK, unit_of
from sympy.core.relational import Relational

DIGITS = 1000
"""Digits of the first comparison of two numbers; the second one has twice as many."""

HUGE = 10_000
"""Numbers with more digits before the point are equal to nothing but themselves."""

LIMIT = 64
"""Longer lists are equal to nothing but themselves."""

FUNCTION = rf"\\(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![a-z]) ?"
INDEX = r"_\{(?:[^{}]|\{[^{}]*\})*\}"
LETTER = rf"\\(?:{'|'.join(ACCENTS)})\{{[^{{}}]*\}}|\\(?:{'|'.join(GREEK)})(?![a-zA-Z]) ?|(?<!\\)[a-zA-Z]"
SYMBOL = rf"(?:{LETTER})(?:'|{INDEX})*"
SYMBOLS = re.compile(rf"(\\(?:begin|end|mathbb)\{{\w+\}})|({SYMBOL})|\\[a-zA-Z]+ ?")
CALL = r"(?:\^\{-1\})?\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
PLAIN = rf"(?:m?\\angle |\\triangle )?(?:{SYMBOL}|\\text\{{\w+\}}(?=\())+(?:{CALL})*"
NAME = rf"{PLAIN}|\|{PLAIN}\||\\frac\{{{PLAIN}\}}\{{{PLAIN}\}}|{PLAIN}[:/]{PLAIN}|\({PLAIN}(?:,{PLAIN})+\)"
NAME = rf"(?:{FUNCTION})?(?:{NAME})"
DERIVATIVE = re.compile(rf"\\frac\{{d(?:\^\{{(\d)\}})?\s?({SYMBOL})\}}\{{d({SYMBOL})(?:\^\{{\d\}})?\}}")
TIME = re.compile(r"0?(\d{1,2}:[0-5]\d)(?:\\text\{)?(?:([ap])\.?m)?\.?\}?", re.IGNORECASE)
READ = re.compile(
    rf"(?:{FUNCTION}|\\(?:begin|end)\{{[pbBv]?matrix\}}|\\log_|\\\\|\\[{{}}]|\\(?:frac|sqrt|cdot|pi|binom|vec|lfloor"
    r"|rfloor|lceil|rceil|le|ge|ne|cup|cap|setminus|mathbb|emptyset|infty)(?![a-z]) ?|(?<=mathbb\{)R"
    r"|[-+/^(){}|!0-9eiv\[\]<>=,&])+"
)
SETS = re.compile(r"\\(?:cup|cap|setminus|mathbb|emptyset|le|ge|ne)(?![a-z])|\\\{\\\}|[<>]")
VALUES: dict[str, Callable] = {
    "Add": lambda *terms: mpmath.fsum(terms),
    "Mul": lambda *factors: mpmath.fprod(factors),
    "Pi": lambda: +mpmath.pi,
    "Exp1": lambda: +mpmath.e,
    **{"Pow": mpmath.power, "Abs": mpmath.fabs, "ceiling": mpmath.ceil, "log": mpmath.log, "exp": mpmath.exp},
    **{
        name: getattr(mpmath, name)
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot")
    },
    **{name: getattr(mpmath, name) for name in ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh")},
    **{name: getattr(mpmath, name) for name in ("floor", "factorial", "binomial")},
}


class Unreadable(Exception):
    """Not a formula that math-verify's parser reads, and reads rightly."""


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


def inside(text: str) -> list[str]:
    """What stands between commas in one pair of brackets round everything; nothing if there is no such pair."""
    depths, depth = [], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        depths.append(depth)
    return split(text[1:-1], ",", ";") if 0 in depths[1:] and depths.index(0) == len(text) - 1 else []


def is_tuple(text: str) -> bool:
    return text[:1] in ("(", "[") and len(inside(text)) > 1


def is_set(text: str) -> bool:
    return text[:2] == r"\{" and "|" not in text and bool(inside(text[1:]))


def members(text: str) -> list[str]:
    r"""What a list or a set in braces holds; a member with `\pm` is one for each choice of signs."""
    text, found = text[2:-2] if is_set(text) else text, []
    rows, parts = split(text, ";"), split(text, ",", ";", r"\and", r"\or")
    if len(rows) > 1 and all(len(split(row, ",")) > 1 for row in rows):  # 1,2;3,4
        parts = [f"({row})" for row in rows]
    for part in filter(None, parts):
        for signs in product("+-", repeat=min(len(re.findall(r"\\pm(?![a-z])", part)), 4)):
            left = iter([*signs, *signs[:1]])
            plus = re.sub(r"\\pm(?![a-z]) ?", lambda _, left=left: next(left), part)
            found.append(re.sub(r"(^|[(,=])\+", r"\1", re.sub(r"\\mp ?", "-" if signs[:1] == ("+",) else "+", plus)))
    return list(dict.fromkeys(found)) if r"\pm" in text else found


def named(text: str) -> tuple[str, list[str]]:
    """The name of what is stated, empty if there is none, and the links of the chain of equalities behind it."""
    links = split(text, "=") if r"\approx" not in text else split(text, r"\approx")  # x is about 11
    if len(links) > 1 and re.fullmatch(NAME, links[0], re.IGNORECASE):
        return links[0], links[1:]
    if len(links) == 1 and (m := re.match(rf"({NAME})\\in(?![a-z])", text)):
        return m[1], [text[m.end() :].strip()]
    point = text[:1].isupper() and is_tuple(text[1:])  # A(1,2)
    return (text[0], [text[1:]]) if point else ("", links)


def values(items: list[str]) -> list[str]:
    """The items without their names, in the order of the names."""
    pairs = sorted(((named(item), item) for item in items), key=lambda pair: pair[0][0])
    return [links[-1] if name else item for (name, links), item in pairs]


# --- comparing ----------------------------------------------------------------------------------------------------


def same(ref: str, ans: str) -> bool:
    """Is an answer equal to a reference? Both are spelled."""
    ref, ans = (inside(t)[0] if t[:1] == "(" and len(inside(t)) == 1 else t for t in (ref, ans))
    return ref == ans or any(test(ref, ans) for test in TESTS)


def readable(text: str) -> bool:
    """Can another text, spelled, be equal to this one?"""
    return any(test(text, text) for test in TESTS)


def same_list(ref: str, ans: str) -> bool:
    """Lists hold the same in any order, as often; in a set once is enough. A tuple may lack its brackets."""
    refs, answers, sets = members(ref), members(ans), is_set(ref) or is_set(ans)
    if not (sets or 1 < max(len(refs), len(answers)) <= LIMIT):
        return False
    tuples = [is_tuple(values([text])[0]) for text in (ref, ans)]
    if sum(tuples) == 1 and not sets and (tuples[0] or all(named(r)[0] for r in refs)):
        bracketed = [f"({','.join(values(members(text)))})" for text in (ref, ans)]
        return same_tuple(
            values([ref])[0] if tuples[0] else bracketed[0], values([ans])[0] if tuples[1] else bracketed[1]
        )
    if any(len({named(i)[0] for i in items} - {""}) < len(items) for items in (refs, answers)):
        refs, answers = values(refs), values(answers)
    if sets:
        return all(any(same(r, a) for a in answers) for r in refs) and all(
            any(same(r, a) for r in refs) for a in answers
        )
    left = sorted(refs)
    for answer in sorted(answers):
        found = next((i for i, ref in enumerate(left) if same(ref, answer)), None)
        if found is None:
            return False
        del left[found]
    return not left


def same_tuple(ref: str, ans: str) -> bool:
    alike = is_tuple(ref) and is_tuple(ans) and ref[0] + ref[-1] == ans[0] + ans[-1]
    return alike and len(inside(ref)) == len(inside(ans)) and all(map(same, inside(ref), inside(ans)))


def same_named(ref: str, ans: str) -> bool:
    """An answer may name what it states, or leave out the reference's name or index, but not change the name."""
    (ref_name, ref_links), (name, links) = named(ref), named(ans)
    if (
        (len(ref_links) == 2 and not ref_name)
        or len(links) > 4
        or (len(ref_links + links) == 2 and not name + ref_name)
    ):
        return False
    links = [link for link in links[:-1] if not re.fullmatch(NAME, link)] + links[-1:]  # x=y=3
    calls = [re.fullmatch(r"(\w)\((\w)\)", n) for n in (ref_name, name)]
    if all(calls) and calls[0][1] == calls[1][1]:  # f(n)=2n is f(x)=2x
        links = [re.sub(rf"(?<![\\a-zA-Z]){calls[1][2]}(?![a-zA-Z])", calls[0][2], link) for link in links]
    elif name and ref_name and name not in (ref_name, re.sub(INDEX, "", ref_name)):
        links = links if re.sub(INDEX, "", name) == ref_name else []
    return bool(links) and all(same(ref_links[-1], link) for link in links)


def same_words(ref: str, ans: str) -> bool:
    """Words without capitals, articles and the s of a plural."""
    said = []
    for text in (ref, ans):
        plain = re.sub(r"\\text\{([^{}]*)\}(?!\()", r" \1 ", text)  # \text{Var}(X) is no words
        if not re.fullmatch(r"[\w\s'.,()-]*", plain) or not re.search(
            r"[A-Za-z]{2}[a-z]|[^\W\d_a-zA-Z]|(?i:^no$)", plain
        ):
            return False
        said.append("".join(w for w in re.findall(r"[\w'()-]+", plain.casefold()) if w not in ("the", "a", "an")))
    return said[0].removesuffix("s") == said[1].removesuffix("s")


def same_ratio(ref: str, ans: str) -> bool:
    """Times of day, which may lack a.m. or p.m.; else ratios, of which one of two numbers may be a fraction."""
    times, refs, answers = [TIME.fullmatch(t) for t in (ref, ans)], split(ref, ":"), split(ans, ":")
    if all(times):
        halves = {(t[2] or "").lower() for t in times} - {""}
        return times[0][1] == times[1][1] and len(halves) < 2
    answers = [ans, "1"] if len(answers) == 1 and len(refs) == 2 else answers
    return 1 < len(refs) == len(answers) and all(
        same_formula(rf"\frac{{{r}}}{{{refs[0]}}}", rf"\frac{{{a}}}{{{answers[0]}}}")
        for r, a in zip(refs, answers, strict=True)
    )


def same_quantity(ref: str, ans: str) -> bool:
    """A unit may be left out or added, but not be another one; n per cent is n or n/100 where one side has the sign."""
    (ref_value, ref_unit), (value, unit) = peel(ref), peel(ans)
    if ref_unit and unit:
        return ref_unit == unit and same_formula(ref_value, value)
    if same_formula(ref_value, value):
        return True
    factor = {"%": r"\frac{1}{100}", "deg": r"\frac{\pi}{180}"}.get(ref_unit or unit, r"\&")
    return same_formula(*(f"({v})({factor})" if u else v for v, u in ((ref_value, ref_unit), (value, unit))))


def peel(text: str) -> tuple[str, str]:
    """Split a value from the unit behind it, or the money before it."""
    text = re.sub(r"^(-?)(\\text\{[^{}\w]+\})(.+)", r"\1\3\2", text)
    if (m := re.fullmatch(r"(.+)\^\{\\circ ?\}(?:(?:\\text\{)?([CF])\}?)?", text)) and not re.search(FUNCTION, m[1]):
        return m[1], "deg" + (m[2] or "")
    word = r"\\text\{[^{}]*\}"
    m = re.fullmatch(rf"(.+?)((?:/|\\cdot ?|\\mu ?)*{word}(?:\^\{{-?\d\}}|/|\\cdot ?|\\mu ?|{word})*)", text)
    unit = m and unit_of(m[2])
    return (m[1], unit) if unit else (text, "")


# --- formulas -----------------------------------------------------------------------------------------------------


def same_formula(ref: str, ans: str) -> bool:
    """Numbers, expressions, equations, matrices and sets of numbers, as math-verify's parser reads them."""
    by = [{coded(m[3]) for m in DERIVATIVE.finditer(text)} for text in (ref, ans)]
    if (all(by) and by[0] != by[1]) or (
        not SETS.search(ref + ans) and any(len(split(t, ",", r"\or", r"\and")) > 1 or is_tuple(t) for t in (ref, ans))
    ):
        return False
    try:
        r, a = region(ref), region(constants(ref, ans))
        if isinstance(r, sympy.Eq) and isinstance(a, sympy.Eq):  # the same but for a constant factor
            return everywhere(r.lhs - r.rhs, a.lhs - a.rhs, but_for_a_factor=True)
        if any(isinstance(tree, (sympy.Set, Relational, sympy.And)) for tree in (r, a)):
            letters = [set() if isinstance(t, sympy.Set) else t.free_symbols for t in (r, a)]
            r, a = as_set(r), as_set(a)
            return (not all(letters) or letters[0] == letters[1]) and (
                r == a or r.symmetric_difference(a).is_empty is True
            )
        if getattr(r, "shape", ()):
            pairs = zip(r.doit(), a.doit(), strict=True)
            return r.shape == a.shape and all(x == y or everywhere(x, y) for x, y in pairs)
        return r == a or everywhere(r, a)
    except (Unreadable, TypeError, KeyError, AttributeError, NotImplementedError):
        return False


def region(text: str) -> sympy.Basic:
    """A formula, or a union of sets and inequalities."""
    if m := re.fullmatch(r"\\\{(\w)(?:\\in ?\\mathbb\{R\})?[|:](.*)\\\}", text):
        text = m[2]
    if re.search(r"[<>]|\\[lg]e ", text):
        text = re.sub(r"(^|[<>]|\\[lg]e )([a-zA-Z])\([a-z]\)(?=$|[<>]|\\[lg]e )", r"\1\2", text)  # 0<f(x)<1
    for join, separators in ((sympy.Union, (r"\or", ",")), (sympy.Intersection, (r"\and",))):
        parts = split(text, *separators)
        if len(parts) > 1:
            return join(*(as_set(formula(part)) for part in parts))
    return formula(text)


def as_set(tree: sympy.Basic) -> sympy.Set:
    """What a set, or an inequality or equation in one letter, holds; a number is the set of itself."""
    if isinstance(tree, (Relational, sympy.And)):
        return tree.as_set()
    return tree.doit() if isinstance(tree, sympy.Set) else sympy.FiniteSet(tree)


def coded(symbol: str) -> str:
    r"""A name for a letter with its primes and index, read as one token by the parser; `x_{\max}'` is `x'_{max}`."""
    index = re.sub(r"\\text|\\(?=max|min)|[{}\s]", "", "".join(re.findall(INDEX, symbol)))
    letter = re.sub(rf"{INDEX}|'|\s|wide", "", symbol).replace("overline", "bar").replace("overrightarrow", "vec")
    key = letter + "'" * re.sub(INDEX, "", symbol).count("'") + index
    return (
        key
        if key in ("e", "i")
        else rf"\vec{{v{int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), 'big')}}}"
    )


def constants(ref: str, ans: str) -> str:
    """The answer with the reference's spelling of a constant of integration, C or c."""
    theirs, ours = ({m[2] for m in SYMBOLS.finditer(t) if m[2]} for t in (ref, ans))
    swapped = {s for s in ours - theirs if s[0] in "cC" and s.swapcase() in theirs - ours and len(theirs) > 1}
    if {"a", "b", "A", "B"} & (theirs | ours):  # side or angle of a triangle
        swapped = {s for s in swapped if len(s) > 1}
    return SYMBOLS.sub(lambda m: m[0].swapcase() if m[2] in swapped else m[0], ans)


@lru_cache(maxsize=1024)
def formula(text: str) -> sympy.Basic:
    """math-verify's reading of a formula, with coded names for its letters.

    Raises:
        Unreadable: the parser does not read it, or not faithfully.
    """
    if re.fullmatch(r"[A-Za-z]{3,}", text) and re.search(r"[aeiou]", text):
        raise Unreadable(text)  # a word
    text = re.sub(r"\\(d?)dot\{(\w)\}", lambda m: m[2] + ("''" if m[1] else "'"), text)
    text = DERIVATIVE.sub(lambda m: m[2] + "'" * int(m[1] or 1), text).replace(r"\lg", r"\log_{10}")
    text = text.replace(r"\\\end", r"\end").replace(r"\\", r"\cr ")
    text = SYMBOLS.sub(lambda m: coded(m[2]) if m[2] else m[0], text).replace(r"\cr ", r"\\")
    text = re.sub(r"(\d+|\\vec\{\w+\})\^\{\\circ ?\}", r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = re.sub(r"(\d+|\\vec\{\w+\})(!+)(?=\^)", r"(\1\2)", text)
    if "," not in text:
        text = re.sub(r"(?<!\\sqrt)\[|\](?!\{)", lambda m: "(" if m[0] == "[" else ")", text)
    factor = r"(\d|\)|\\vec\{\w+\}|\\frac\{\d+\}\{\d+\})(?=\(|\\frac|\\binom)"  # else added, as in 2 1/2
    text = re.sub(factor, r"\1\\cdot ", text).replace("+-", "-").replace("--", "+")
    if not READ.fullmatch(text):
        raise Unreadable(text)
    try:
        return latex2sympy(text, is_real=True, normalization_config=None)
    except RecursionError:
        raise
    except Exception as e:  # the parser raises anything
        raise Unreadable(text) from e


def value(tree: sympy.Basic, at: dict):
    """The number that a formula is with these numbers for its letters; roots of odd order are real."""
    if tree.is_Rational:
        return mpmath.mpf(tree.p) / tree.q
    if tree.is_Symbol:
        return mpmath.mpc(0, 1) if tree.name == "i" else at[tree.name]
    args = [value(arg, at) for arg in tree.args]
    if tree.is_Pow and mpmath.im(args[0]) == 0 and args[0] < 0:
        root = tree.args[1].doit()
        if root.is_Rational and root.q % 2 == 1 < root.q:
            return (-1) ** root.p * mpmath.power(-args[0], args[1])
    return VALUES[type(tree).__name__](*args)


def places(*trees: sympy.Basic) -> list[dict]:
    """Numbers for the letters: whole ones where something is counted or rounded, positive ones where a root or a
    logarithm is taken and no absolute value, else of both signs.
    """
    letters = sorted({s.name for tree in trees for s in tree.free_symbols if s.name != "i"})
    nodes = [node for tree in trees for node in sympy.preorder_traversal(tree)]
    kinds = {type(node).__name__ for node in nodes}
    open_ = [n for n in nodes if n.free_symbols and n.args]
    whole = kinds & {"floor", "ceiling", "factorial", "binomial"} or any(
        n.is_Pow and not n.args[0].free_symbols and n.args[0].is_negative for n in open_
    )
    rooted = any(
        n.args[0].free_symbols and (type(n).__name__ == "log" or (n.is_Pow and not n.args[1].doit().is_Integer))
        for n in open_
    )
    found = []
    for k in range((16 if whole else 4) if letters else 1):
        codes = {s: int.from_bytes(blake2b(f"{s} {k}".encode(), digest_size=4).digest(), "big") for s in letters}
        sign = {s: -1 if c >> 31 and (not rooted or "Abs" in kinds) else 1 for s, c in codes.items()}
        found.append({s: 2 + c % 40 if whole else sign[s] * mpmath.mpf(1 + c % 9973) / 4001 for s, c in codes.items()})
    return found


def everywhere(ref: sympy.Basic, ans: sympy.Basic, but_for_a_factor: bool = False) -> bool:
    """Are two formulas equal at all places where both have a value? The factor is their quotient at the first place."""
    where, verdicts = places(ref, ans), []

    def pair(at: dict) -> list:
        factors = [value(tree, where[0]) for tree in (ans, ref)] if but_for_a_factor else [1, 1]
        return (
            [value(tree, at) * factor for tree, factor in zip((ref, ans), factors, strict=True)]
            if all(factors)
            else [0, 1]
        )

    for at in where[but_for_a_factor:]:
        try:
            verdicts.append(agree(lambda at=at: pair(at), 50 if verdicts else DIGITS))
        except (ZeroDivisionError, ValueError):  # a pole
            continue
        if not verdicts[-1]:
            return False
    return len(verdicts) > len(where) // 6


def agree(pair: Callable[[], list], most: int) -> bool:
    """Are two numbers equal? Their difference then is 0, or it shrinks as digits are added."""
    differences, digits = [], 30
    while len(differences) < 3:
        with mpmath.workdps(digits):
            a, b = pair()
            difference, size = abs(a - b), max(abs(a), abs(b))
            if not mpmath.isfinite(difference) or (digits == 30 and size > 1e-9 and difference > size * 1e-12):
                return False
            differences.append(difference)
            before_point = int(mpmath.mag(size) * 0.30103) if size > 1 else 0
            if before_point > HUGE:
                return False
            digits = most * len(differences) + before_point
    left = mpmath.mpf(10) ** (-most // 2)
    return differences[2] <= max(differences[1] * left, size * mpmath.mpf(10) ** -before_point * left**3)


TESTS = same_list, same_tuple, same_named, same_words, same_ratio, same_quantity
