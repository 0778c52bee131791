# SPDX-License-Identifier: Apache-2.0
r"""Do two spelled answers say the same? Lists, tuples, names and units are taken apart here; the formulas within are
read by math-verify's parser (latex2sympy2_extended) and compared by their values.

Two formulas are equal if they agree wherever their letters are given numbers. A formula with a sign that the parser
does not read, or reads wrongly, is equal to nothing but itself.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate
from random import Random

import sympy
from latex2sympy2_extended import latex2sympy
from reward_spelling import ACCENTS, FUNCTIONS, GREEK, TABLES, unit_of
from sympy.core.relational import Relational

DIGITS = 1000  # of the comparison of two numbers
HUGE = sympy.Float("1e10000")  # larger numbers are equal to nothing but themselves
LIMIT = 64  # so are longer lists
IMAGINARY = sympy.Symbol("i", real=True)
SPECIAL = {"Abs", "floor", "ceiling", "factorial", "binomial"}

INDEX = r"_\{(?:[^{}]|\{[^{}]*\})*\}"
LETTER = rf"\\(?:{'|'.join(ACCENTS)})\{{[^{{}}]*\}}|\\(?:{'|'.join(GREEK)})(?![a-zA-Z]) ?|(?<!\\)[a-zA-Z]"
SYMBOL = rf"(?:{LETTER})(?:'|{INDEX})*"
SYMBOLS = re.compile(rf"(\\(?:begin|end|mathbb)\{{\w+\}})|({SYMBOL})|\\[a-zA-Z]+ ?")
FUNCTION = rf"\\(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![a-z]) ?"
NAME = re.compile(rf"(?:{FUNCTION}|{LETTER}|\\(?:angle|triangle|frac)(?![a-z]) ?|\^\{{-1\}}|[{{}}|'/:])+")
READ = re.compile(
    rf"(?:{FUNCTION}|\\(?:{'|'.join(TABLES['read'].split())})(?![a-z]) ?|\\(?:begin|end)\{{[pbBv]?matrix\}}"
    r"|\\(?:log|sum) ?_|\\\\|\\[{}]|(?<=mathbb\{)R|[-+/^(){}|!0-9eiv\[\]<>=,&])+"
)
SETS = re.compile(r"\\(?:cup|cap|setminus|mathbb|emptyset|le|ge|ne)(?![a-z])|\\\{\\\}|[<>]")


def split(text: str, *separators: str) -> list[str]:
    """Split at separators that stand outside all brackets. All kinds of bracket count alike."""
    parts, depth = [""], 0
    for token in re.findall("|".join(map(re.escape, separators)) + "|.", text, re.DOTALL):
        depth += (token in "([{") - (token in ")]}")
        parts = [*parts, ""] if depth == 0 and token in separators else [*parts[:-1], parts[-1] + token]
    return [part.strip() for part in parts]


def members(text: str) -> tuple[str, list[str]]:
    r"""The brackets round a tuple, an interval or a set, none round a list or a single value; and what they hold."""
    rows = split(text, ";")
    if len(rows) > 1 and all(len(split(row, ",")) > 1 for row in rows):  # 1,2;3,4
        return "", [f"({row})" for row in rows]
    text = f"{{{text[2:-2]}}}" if text[:2] == r"\{" and "|" not in text else text
    depths = list(accumulate((c in "([{") - (c in ")]}") for c in text))
    whole = depths[:1] == [1] and 0 in depths and depths.index(0) == len(text) - 1
    parts = split(text[1:-1] if whole else text, ",", ";", r"\and ", r"\or ")
    kind = text[0] + text[-1] if whole and (text[0] == "{" or len(parts) > 1) else ""
    return kind, [part for part in parts if part]


def is_tuple(text: str) -> bool:
    return members(text)[0][:1] in ("(", "[")


def named(text: str) -> tuple[str, list[str]]:
    r"""The name of what is stated, empty if there is none, and the links of the chain of equalities behind it."""
    text = split(text, r"\approx ")[0] if "=" in text else text  # x=1/3 and about 0.3
    links = split(text, "=", r"\approx ") if r"\in " not in text else split(text, r"\in ")
    if len(links) < 2 or not is_name(links[0]):
        return "", links
    return links[0], [link for link in links[1:-1] if not is_name(link)] + links[-1:]  # x=y=3


def is_name(text: str) -> bool:
    """Letters with their indices and arguments, as P(X=2), AB, |z|; or a tuple of such."""
    if is_tuple(text):
        return all(map(is_name, members(text)[1]))
    bare = re.sub(INDEX, "", text)
    while bare != (bare := re.sub(r"(?<=[\w}'])\([^()]*\)", "", bare)):
        pass
    return bool(NAME.fullmatch(bare))


def same(ref: str, ans: str) -> bool:
    """Is an answer equal to a reference? Both are spelled."""
    return ref == ans or any(test(ref, ans) for test in TESTS)


def same_members(ref: str, ans: str) -> bool:
    r"""Tuples and intervals hold the same in the same order, in the same brackets, which an answer may lack. Lists hold
    the same in any order, as often; in a set once is enough. One `\pm` in a member of these makes it two.
    """
    (kind, refs), (other, answers) = members(ref), members(ans)
    if kind[:1] in ("(", "["):
        return other in (kind, "") and len(refs) == len(answers) and all(map(same, refs, answers))
    refs, answers = ([value for part in parts for value in signed(part)] for parts in (refs, answers))
    if other[:1] in ("(", "[") or not ("{}" in (kind, other) or 1 < max(len(refs), len(answers)) <= LIMIT):
        return False
    if "{}" in (kind, other):
        equal = [[same(r, a) for a in answers] for r in refs]
        return bool(refs and answers) and all(map(any, [*equal, *zip(*equal, strict=True)]))
    for answer in sorted(answers):
        found = next((r for r in sorted(refs) if same(r, answer)), None)
        if found is None:
            return False
        refs.remove(found)
    return not refs


def signed(text: str) -> list[str]:
    r"""Both values of a text with one `\pm`, or the text."""
    if text.count(r"\pm ") != 1:
        return [text]
    return [text.replace(r"\pm ", plus).replace(r"\mp ", minus) for plus, minus in ("+-", "-+")]


def same_named(ref: str, ans: str) -> bool:
    """An answer may name what it states, or leave out the reference's name, but not change it; 5 is 2+3=5."""
    (ref_name, ref_links), (name, links) = named(ref), named(ans)
    bare = not (name or ref_name) and (len(ref_links) == 2 or len(ref_links + links) == 2)
    if bare or len(links) > 4 or (name and ref_name and name != ref_name):
        return False
    return all(same(ref_links[-1], link) for link in links)


def same_ratio(ref: str, ans: str) -> bool:
    """Ratios, of which one of two numbers may be a fraction. What may be a time of day is none."""
    refs, answers = split(ref, ":"), split(ans, ":")
    if all(re.fullmatch(r"\d+:[0-5]\d", text) for text in (ref, ans)):
        return ref.lstrip("0") == ans.lstrip("0")
    answers += ["1"] if len(answers) == 1 and len(refs) == 2 else []
    r, a = ([f"({part})/({parts[0]})" for part in parts] for parts in (refs, answers))
    return 1 < len(r) == len(a) and all(map(same_formula, r, a))


def same_quantity(ref: str, ans: str) -> bool:
    """A unit may be left out or added, but not be another one; n per cent is n or n/100 where one side has the sign."""
    (ref_value, ref_unit), (value, unit) = peel(ref), peel(ans)
    if ref_unit and unit and ref_unit != unit:
        return False
    if same_formula(ref_value, value) or same_ratio(ref_value, value) or (ref_value == value and ref_unit + unit):
        return True
    factor = {"%": r"\frac{1}{100}", "deg": r"\frac{\pi}{180}"}.get(ref_unit or unit)
    converted = [f"({v})({factor})" if u else v for v, u in ((ref_value, ref_unit), (value, unit))]
    return bool(factor) and not (ref_unit and unit) and same_formula(*converted)


def peel(text: str) -> tuple[str, str]:
    """Split a value from the unit behind it, or the money before it."""
    text = re.sub(r"^(-?)(\\text\{[^{}\w]+\})(.+)", r"\1\3\2", text)
    if (m := re.fullmatch(r"(.+)\^\{\\circ ?\}", text)) and not re.search(FUNCTION, m[1]):
        return m[1], "deg"
    word = r"(?:\\text\{[^{}]*\}(?:\^\{-?\d\})?|/|\\cdot |\\mu )"
    m = re.fullmatch(rf"(.+?)({word}+)", text)
    unit = m and unit_of(m[2])
    return (m[1], unit) if unit else (text, "")


def same_formula(ref: str, ans: str) -> bool:
    """Numbers, expressions, equations, matrices and sets of numbers, as math-verify's parser reads them."""
    if not SETS.search(ref + ans) and any(len(split(t, ",", r"\or ", r"\and ")) > 1 or is_tuple(t) for t in (ref, ans)):
        return False
    try:
        r, a = region(ref), region(ans)
        if isinstance(r, sympy.Eq) and isinstance(a, sympy.Eq):
            return proportional(r.lhs - r.rhs, a.lhs - a.rhs)
        if any(isinstance(tree, (sympy.Set, Relational, sympy.And)) for tree in (r, a)):
            letters = [set() if isinstance(t, sympy.Set) else t.free_symbols for t in (r, a)]
            r, a = as_set(r), as_set(a)
            return (not all(letters) or letters[0] == letters[1]) and (r == a or (r ^ a).is_empty is True)
        if getattr(r, "shape", ()):
            return r.shape == a.shape and all(map(everywhere, r.doit(), a.doit()))
        return everywhere(r, a)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError):
        return False


def region(text: str) -> sympy.Basic:
    """A formula, or a union of sets and inequalities."""
    text = re.sub(r"(?<=[<>])([a-z])\([a-z]\)(?=[<>])", r"\1", text)  # 0<f(x)<1
    parts = split(text, r"\or ", ",")
    return formula(text) if len(parts) == 1 else sympy.Union(*(as_set(formula(part)) for part in parts))


def as_set(tree: sympy.Basic) -> sympy.Set:
    """What a set, or an inequality or equation in one letter, holds; a number is the set of itself."""
    if isinstance(tree, (Relational, sympy.And)):
        return tree.as_set()
    return tree.doit() if isinstance(tree, sympy.Set) else sympy.FiniteSet(tree)


def coded(symbol: str) -> str:
    """A name for a letter with its primes and index, read as one token by the parser."""
    key = re.sub(r"\\text|\\(?=max|min)|[{}_\s]", "", symbol)
    return key if key in ("e", "i") else rf"\vec{{v{int.from_bytes(key.encode(), 'big')}}}"


@lru_cache(maxsize=1024)
def formula(text: str) -> sympy.Basic:
    """math-verify's reading of a formula, with coded names for its letters; a ValueError if it is not faithful."""
    text = re.sub(r"\\sqrt\[(\d*[13579])\]\{-((?:[^{}+-]|\{[^{}]*\})*)\}", r"(-\\sqrt[\1]{\2})", text)  # real roots
    text = text.replace(r"\lg ", r"\log_{10}").replace(r"\\", r"\cr ")
    text = SYMBOLS.sub(lambda m: coded(m[2]) if m[2] else m[0], text).replace(r"\cr ", r"\\")
    text = re.sub(r"(\d+|\\vec\{\w+\})\^\{\\circ ?\}", r"(\1\\cdot\\frac{\\pi}{180})", text)
    factor = r"(\d|\)|\\vec\{\w+\}|\\frac\{\d+\}\{\d+\})(?=\(|\\frac|\\binom)"  # else added, as in 2 1/2
    text = re.sub(factor, r"\1\\cdot ", text).replace("+-", "-").replace("--", "+")
    if not READ.fullmatch(text):
        raise ValueError(text)
    try:
        return latex2sympy(text, is_real=True, normalization_config=None)
    except Exception as e:  # the parser raises anything
        raise ValueError(text) from e


def proportional(ref: sympy.Basic, ans: sympy.Basic) -> bool:
    """Are two formulas the same but for a constant factor, f(x)g(y) = g(x)f(y)? Neither may be zero."""
    other = {s: sympy.Symbol(f"{s.name} again") for s in ref.free_symbols | ans.free_symbols if s.name != "i"}
    if everywhere(ref, sympy.S.Zero) or everywhere(ans, sympy.S.Zero):
        return False
    return everywhere(ref * ans.xreplace(other), ans * ref.xreplace(other))


def everywhere(ref: sympy.Basic, ans: sympy.Basic) -> bool:
    """Are two formulas equal at random places? Letters are positive, whole where something is counted or rounded, and
    of both signs where there is an absolute value.
    """
    if ref == ans or ref.has(sympy.oo) or ans.has(sympy.oo):
        return ref == ans
    # a sum is compared by its term and its limits
    ref, ans = (t.replace(sympy.Sum, lambda f, at: f * sympy.cos(at[1]) * sympy.sin(at[2])) for t in (ref, ans))
    letters = sorted((ref.free_symbols | ans.free_symbols) - {IMAGINARY}, key=str)
    special = {type(node).__name__ for tree in (ref, ans) for node in sympy.preorder_traversal(tree)} & SPECIAL
    agreed = 0
    for k in range((8 if special else 3) if letters else 1):
        at, random = {IMAGINARY: sympy.I}, Random(k)
        for letter in letters:
            size = random.randint(2, 40) if special - {"Abs"} else sympy.Rational(random.randint(1, 9999), 4001)
            at[letter] = random.choice([size, -size]) if special == {"Abs"} else size
        size = ref.evalf(5, subs=at)
        if not abs(size) < HUGE:
            continue
        digits = 30_000 if abs(size) > 10**60 else 60 if agreed else DIGITS
        noise = abs(size) * sympy.Float(10) ** (-digits * 3 // 4)
        values = [tree.evalf(digits, subs=at) for tree in (ref, ans)]
        if all(part == 0 or part._prec > 3 * digits for value in values for part in value.as_real_imag()):
            left = values[0] - values[1]
        else:  # digits were lost
            left = sympy.Add(ref, -ans, evaluate=False).evalf(5, subs=at, maxn=digits)
        if not all(part == 0 or part._prec == 1 or abs(part) < noise for part in left.as_real_imag()):
            return False
        agreed += 1
    return agreed > 0


TESTS = same_members, same_named, same_ratio, same_quantity
