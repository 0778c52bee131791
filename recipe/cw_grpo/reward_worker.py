# SPDX-License-Identifier: Apache-2.0
"""Is this answer equal to this reference? The process in which `reward.py` asks math-verify.

The comparison is math-verify's. What stands here are rules about what it is given and which of its verdicts is
believed; each has a number, is explained in REWARD.md and has labelled cases in `tests/data/reward_cases.yaml`.
Run as a script this file reads one JSON request a line from its standard input and answers on its standard output.
It has no time limit of its own: `reward.py` sets the kernel's limits and kills the process when it is late.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import resource
import select
import signal
import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Expr, I, Rational, Union

REFERENCE_LIMIT = 2000
"""Longer references are taken for an error in the data."""

MEMBERS_LIMIT = 4
"""Longer chains of equalities are not looked at."""

NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)


class BadReference(ValueError):
    """The reference cannot be read: an error in the data, never a right answer."""


# --- reading an answer --------------------------------------------------------------------------------------------

CHARACTERS = str.maketrans(
    {
        "−": "-",  # noqa: RUF001
        "–": "-",  # noqa: RUF001
        "×": r"\times ",  # noqa: RUF001
        "·": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",  # noqa: RUF001
        "∈": r"\in ",
        "°": r"^\circ ",
        "\u00a0": " ",
    }
)
TEXT = r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|operatorname)"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|phi|psi|rho|sigma|tau|omega|Delta|Omega"
NAME = rf"(?:(?:[A-Za-z]'*|\\(?:{GREEK}))(?:_\{{?\w+\}}?)?(?:\([^()=]*\))?|\([A-Za-z](?:\s*,\s*[A-Za-z])+\))"
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|sqrt|pi|infty"
UNFINISHED = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|limsup|liminf)(?![a-zA-Z])|\\frac\{d\}\{d")
VAGUE = re.compile(r"\\(?:approx|sim|simeq|cong|pmod|bmod|ldots|cdots|dots|vdots|to|mid)(?![a-zA-Z])|\.\.|\?|…")
HEDGE = re.compile(r"\b(?:or|and|not|no|maybe|if|but|is|isn't|than|most|least|more|less|else|about|approx\w*)\b")
RELATION = re.compile(r"\\(?:leq?|geq?|leqslant|geqslant|lt|gt|neq?)(?![a-zA-Z])|[<>]")

UNITS = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimetre",
        "cm": "cm centimeter centimetre",
        "m": "m meter metre",
        "km": "km kilometer kilometre",
        "in": "in inch inche",
        "ft": "ft foot feet",
        "yd": "yd yard",
        "mi": "mi mile",
        "mg": "mg milligram",
        "g": "g gram gramme",
        "kg": "kg kilogram kilo",
        "lb": "lb pound",
        "oz": "oz ounce",
        "ml": "ml milliliter millilitre",
        "l": "l liter litre",
        "s": "s sec second",
        "min": "min minute",
        "h": "h hr hour",
        "day": "day",
        "deg": "deg degree",
        "rad": "rad radian",
        "$": "$ dollar usd buck",
        "cent": "cent",
        "%": "% percent percentage pct",
        "unit": "unit",
        "mph": "mph",
        "m/s": "m/s",
        "km/h": "km/h kmh kph",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Answer:
    """What a box says: a formula, and beside it what graders of mathematics let one write or leave out."""

    text: str  # tidied, whole
    math: str  # without unit, base and per cent
    unit: str = ""
    base: str = ""
    word: bool = False


def tidy(text: str) -> str:
    """Remove typography that carries no meaning: math delimiters, spacing and size commands, a closing full stop."""
    text = text.translate(CHARACTERS)
    text = re.sub(r"\\(?:boxed|fbox)\s*\{", "{", text)
    if text.count("$") - text.count(r"\$") > 1:  # paired: delimiters; a single one is money
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = re.sub(
        r"(?<!\\)\\[()\[\]!,;:> ]|\\(?:displaystyle|textstyle|limits|nolimits|q?quad)(?![a-zA-Z])|~", " ", text
    )
    text = re.sub(r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr)(?![a-zA-Z])\.?", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")")
    text = re.sub(r"\\(?:lbrace|rbrace)(?![a-zA-Z])", lambda m: r"\{" if "l" in m[0] else r"\}", text)
    text = re.sub(r"(?<=\d)\s*\{,\}\s*(?=\d)", "", text)
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ")
    text = re.sub(rf"(?<![\\a-zA-Z])({FUNCTIONS})(?![a-zA-Z])", r"\\\1", text)
    text = re.sub(TEXT + rf"\s*\{{\s*({NUMBER})\s*\}}", r"\1", text)
    text = re.sub(TEXT + rf"\s*\{{\s*({NUMBER}) ([A-Za-z][^{{}}]*)\}}", r"\1 \\text{\2}", text)
    text = re.sub(r"\s+", " ", text).strip()
    while len(text) > 1 and (text[-1] in ".,;:" or _is_wrapped(text)):
        text = text[:-1].rstrip() if text[-1] in ".,;:" else text[1:-1].strip()
    return text


def _is_wrapped(text: str) -> bool:
    """One pair of plain braces round everything."""
    return (
        text.startswith("{") and text.endswith("}") and not text.endswith(r"\}") and _closing(text, 0) == len(text) - 1
    )


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, -1 if none does. All kinds of bracket count alike."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def split_top(text: str, separator: str) -> list[str]:
    """Split at a separator that stands outside all brackets."""
    parts, depth, last = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c == separator:
            parts.append(text[last:i].strip())
            last = i + 1
    return [*parts, text[last:].strip()]


def read(text: str) -> Answer:
    """Tidy an answer and take from its end what is not the value: unit, per cent, base."""
    text = tidy(text)
    if spelled(text) is not None and (re.search(r"[A-Za-z]{3}", _bare(text)) or re.match(TEXT, text)):
        return Answer(text, text, word=True)
    math, unit = peel_unit(re.sub(rf"\s*{TEXT}\s*\{{\s*,?\s*(or|and)\s*\}}\s*|\s+(or|and)\s+", r" \1\2 ", text))
    base = ""
    if m := re.fullmatch(r"(-?[0-9A-Fa-f]+)\s*_\s*\{?(\d+)\}?", math):
        math, base = m.groups()
    return Answer(text, exact(math), unit, base)


def spelled(text: str) -> str | None:
    """The words of an answer that is nothing but words, or a letter; None for a formula."""
    text = _bare(text)
    return " ".join(text.casefold().split()) if re.fullmatch(r"[A-Za-z][A-Za-z0-9' .,\-]*", text) else None


def _bare(text: str) -> str:
    if m := re.fullmatch(TEXT + r"\s*\{([^{}]*)\}", text):
        text = m[1].strip()
    if m := re.fullmatch(r"\(?(\w+)\)", text):
        text = m[1]
    return text.rstrip(".")


def peel_unit(text: str) -> tuple[str, str]:
    """Split a trailing (or, for money, leading) unit from a value.

    Returns the value and the unit in one spelling: `("5", "cm^2")` for `5\\text{ square centimeters}`.
    """
    units: list[str] = []
    if m := re.match(r"(-?)\s*\\?\$\s*(?=[\d.])", text):
        text, units = m[1] + text[m.end() :], ["$"]
    while True:
        if m := re.search(r"\s*(\\?%|\\?\$|\^\s*\{?\s*\\circ\s*\}?|\\degree)$", text):
            word = m[1].lstrip("\\") if m[1][-1] in "%$" else "deg"
            if word == "deg" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", text):
                break  # of the argument, not of the value
        elif m := re.search(rf"(?<=[\d}})\]!a-zA-Z])\s*/?\s*{TEXT}\s*\{{([^{{}}]*)\}}\s*(\^\s*\{{?\d\}}?)?$", text):
            if re.search(r"\\(?!pi$|infty$)[a-zA-Z]+$", text[: m.start()]):  # \cup\text{B}: an operand, no unit
                break
            word = ("/" if "/" in text[m.start() : m.start(1) - 5] else "") + m[1] + (m[2] or "")
        elif (m := re.search(r"(?<=[\d})])\s*\b([A-Za-z][A-Za-z /]*?)(\^\s*\{?\d\}?)?$", text)) and all(
            w in UNITS or len(w) > 3 for w in re.split(r"[ /]+", m[1].lower())
        ):
            if m[1] in "mhgls" and m.start(1) == m.start():  # 5m may be five times m; 5 m is metres
                break
            word = m[1] + (m[2] or "")
        else:
            break
        if not text[: m.start()].strip():
            break
        units.insert(0, word)
        text = text[: m.start()].rstrip()
    return text, canonical_unit(units)


def canonical_unit(pieces: list[str]) -> str:
    """One spelling for one unit; words that are no known unit stay as they are, in lower case and singular."""
    words = re.sub(r"[{}~.\\]|^-", " ", " ".join(pieces)).lower()
    words = re.sub(r"\bper\b", "/", words)
    words = re.sub(r"\b(?:square|sq)\s+(\w+)", r"\1^2", words)
    words = re.sub(r"\b(?:cubic|cu)\s+(\w+)", r"\1^3", words)
    words = re.sub(r"[a-z]+|[%$]", lambda m: UNITS.get(m[0]) or UNITS.get(m[0].removesuffix("s")) or m[0], words)
    return re.sub(r"\s*([/^])\s*", r"\1", " ".join(words.split()))


def exact(math: str) -> str:
    """Write every number so that the parser reads its exact value: powers of ten, repeating and finite decimals."""
    if re.fullmatch(r"[-+]?\d{1,3}(?:[ ,]\s?\d{3})+(?:\.\d+)?", math):
        math = re.sub(r"[ ,]", "", math)
    math = re.sub(rf"(?<![\w.\\]{{1}})({NUMBER})[eE]([-+]?\d+)(?![\w.])", r"\1\\times10^{\2}", math)
    math = re.sub(r"(?<![\d.)}])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}", math)
    math = re.sub(r"(\d*)\.(\d*)\s*\\(?:overline|bar|dot)\s*\{?(\d+)\}?", _repeating, math)
    math = re.sub(r"(?<![\d.])(\d*)\.(\d+)(?!\d)", lambda m: _fraction(Fraction(m[0]), m), math)
    return re.sub(r"(\d)\.(?!\d)", r"\1", math).strip()


def _repeating(m: re.Match[str]) -> str:
    head, tail, period = m.groups()
    value = Fraction(int(head + tail + period or 0) - int(head + tail or 0), 10 ** len(tail) * (10 ** len(period) - 1))
    return _fraction(value, m)


def _fraction(value: Fraction, m: re.Match[str]) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    text = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    alone = re.fullmatch(r"[-+ ]*", m.string[: m.start()]) and m.end() == len(m.string)
    return text if alone else f"({text})"


# --- what kind of object it is ------------------------------------------------------------------------------------


def split_list(math: str) -> list[str]:
    return [p for part in split_top(re.sub(r"\s(?:or|and)\s", ",", math), ",") for p in split_top(part, ";")]


def kind(math: str) -> str:
    """`set`, `bracket` (tuple or interval), `list`, `relation`, `matrix` or `value`, judged by how it is written."""
    if math.startswith(r"\{") and _closing(math, 1) == len(math) - 1:
        return "set"
    if math[:1] in "([" and _closing(math, 0) == len(math) - 1 and len(split_list(math[1:-1])) > 1:
        return "bracket"
    if RELATION.search(math):
        return "relation"
    if len(split_list(math)) > 1 or re.search(r"\\(?:pm|mp)(?![a-zA-Z])", math):
        return "list"
    if re.search(r"\\(?:cup|cap|setminus|mathbb)(?![a-zA-Z])", math):
        return "bracket"
    if re.fullmatch(r"\\emptyset|\\varnothing", math):
        return "set"
    return "matrix" if "matrix}" in math else "value"


@lru_cache(maxsize=512)
def parse(math: str):
    """math-verify's LaTeX parser on the formula itself, without its search through prose.

    Raises:
        ValueError: the formula cannot be parsed.
    """
    if m := re.fullmatch(r"(-?)(?:\\frac\{([0-9]+)\}\{(0*[1-9][0-9]*)\}|([0-9]+))", math):  # quick, for most
        return Rational(int(m[1] + (m[2] or m[4])), int(m[3] or 1))
    parts = re.split(r"\sor\s", math)
    if len(parts) > 1 and all(RELATION.search(p) for p in parts):  # x<1 or x>2: a union of half lines
        return Union(*(parse(p).as_set() for p in parts))
    if re.search(r"(?<![\d.^_])[\d.]+\s+[\d.]", math):
        raise ValueError("two numbers side by side")  # the parser adds them
    try:
        latex = normalize_latex(re.sub(r"\s(?:or|and)\s", ",", math), NORMALIZATION)
        is_complex = should_treat_as_complex(latex)
        parsed = latex2sympy(latex, is_real=not is_complex, convert_degrees="circ" in latex)
        return parsed.subs({s: I for s in parsed.free_symbols if s.name == "i"}) if is_complex else parsed
    except Exception as e:  # the parser raises anything
        raise ValueError("not parsed") from e


# --- comparing ----------------------------------------------------------------------------------------------------


def is_right(answer: str, reference: str) -> bool:
    """Does the content of a box equal the reference, by math-verify under the rules of REWARD.md?

    The accuracy part of the paper's reward (Appendix C: "1.0 for exact matches and 0.0 otherwise").

    Raises:
        BadReference: the reference is empty, too long or cannot be parsed.
    """
    if not 0 < len(reference) <= REFERENCE_LIMIT:
        raise BadReference("empty or too long")
    ref = read(reference)
    if not ref.word:
        try:
            parse(ref.math)
        except ValueError as e:
            raise BadReference(reference) from e
    ans = read(answer)
    if (words := spelled(ref.text)) is not None and words == spelled(ans.text):
        return True
    if ref.word or ans.word:
        return False
    if re.sub(r"(?<!\d) | (?!\d)", "", ans.text) == re.sub(r"(?<!\d) | (?!\d)", "", ref.text):
        return True
    if (ref.unit and ans.unit and ref.unit != ans.unit) or (ref.base and ans.base and ref.base != ans.base):
        return False
    if not ref.unit and HEDGE.search(ans.unit):
        return False
    for forbidden in (UNFINISHED, VAGUE, re.compile(TEXT)):
        if forbidden.search(ans.math) and not forbidden.search(ref.math):
            return False
    try:
        return any(_equal(ref.math, math) for math in _readings(ref, ans))
    except ValueError:
        return False


def _readings(ref: Answer, ans: Answer) -> list[str]:
    """50% is read as 50 and as 50/100 where only one side has the sign; otherwise a formula says one thing."""
    if (ref.unit == "%") == (ans.unit == "%"):
        return [ans.math]
    return [ans.math, rf"({ans.math})/100" if ans.unit == "%" else rf"({ans.math})\cdot 100"]


def _equal(ref: str, ans: str) -> bool:
    if len(split_list(ref)) == 1 and len(split_list(ans)) == 1:
        ref_sides, ans_sides = split_top(ref, "="), split_top(ans, "=")
        if len(ref_sides) > 1 and len(ans_sides) == 2:
            return _same(parse(ref), parse(ans))
        if len(ref_sides) > 1 and not (len(ref_sides) == 2 and re.fullmatch(NAME, ref_sides[0])):
            return False
        if len(ref_sides) > 1 and len(ans_sides) > 1 and ans_sides.pop(0) != ref_sides[0]:
            return False
        if len(ref_sides) == 1 and len(ans_sides) > 1 and re.fullmatch(NAME, ans_sides[0]):
            ans_sides.pop(0)
        return len(ans_sides) <= MEMBERS_LIMIT and all(_equal_objects(ref_sides[-1], side) for side in ans_sides)
    return _equal_objects(ref, ans)


def _equal_objects(ref: str, ans: str) -> bool:
    ref, ans = _unlabelled(ref), _unlabelled(ans)
    kinds = kind(ref), kind(ans)
    if kinds == ("bracket", "list"):  # the brackets of a pair left out
        ans = f"({ans})"
    elif kinds[0] != kinds[1] and set(kinds) not in ({"set", "list"}, {"bracket", "relation"}):
        return False
    return _same(parse(ref), parse(ans))


def _unlabelled(math: str) -> str:
    """Leave out the name of the unknown: `x \\in S` is S, `x=1, x=2` is 1, 2, and a set of one number the number."""
    math = re.sub(rf"^{NAME}\s*\\in(?![a-zA-Z])\s*", "", math)
    pairs = [re.fullmatch(r"([A-Za-z])(?:_\{?\w+\}?)?\s*=\s*([^=]+)", p) for p in split_list(math)]
    if len(pairs) > 1 and all(pairs) and len({p[1] for p in pairs}) == 1:
        return ",".join(p[2] for p in pairs)
    if (
        math.startswith(r"\{")
        and kind(math) == "set"
        and "," not in math
        and kind(math[2:-2]) == "value"
        and math[2:-2].strip()
    ):
        return math[2:-2].strip()
    return math


def _same(ref, ans) -> bool:
    """math-verify's verdict, except that rational numbers, which are most answers, are compared as such at once.

    An acceptance of two other numbers is believed only if their exact difference is not a rational number but 0:
    math-verify's numerical test is absolute, so that 2^{-98} equals 2^{-99} by default, and 2^{1000} equals 2^{1000}+1
    at any precision. 100 digits and the difference close both.
    """
    if isinstance(ref, Rational) and isinstance(ans, Rational):
        return ref == ans
    if not verify(ref, ans, numeric_precision=100, strict=True, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    if isinstance(ref, Expr) and isinstance(ans, Expr) and not (ref.free_symbols or ans.free_symbols):
        difference = (ref - ans).doit()
        return not isinstance(difference, Rational) or difference == 0
    return True


# --- the process --------------------------------------------------------------------------------------------------


def judge(request: dict) -> str:
    """`right`, `wrong` or `bad_reference`; never raises."""
    try:
        return "right" if is_right(request["answer"], request["reference"]) else "wrong"
    except BadReference:
        return "bad_reference"
    except Exception:  # RecursionError, MemoryError, and whatever sympy raises on such text
        return "wrong"


def main() -> None:
    """Serve until the standard input ends, or the parent is gone."""
    memory, cpu_seconds = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; this process ends with its input
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # nothing that a library prints may pass for an answer
    os.dup2(null, 2)
    parent = os.getppid()
    judge(
        {"answer": r"(x-\sqrt{3})^2+\frac{\pi}{2}", "reference": r"\frac{\pi}{2}+x^2-2\sqrt{3}x+3"}
    )  # warms the parser
    gc.collect()
    gc.freeze()  # what was imported never becomes garbage: no need to look through it again and again
    print("ready", file=out, flush=True)
    ready = select.poll()
    ready.register(0, select.POLLIN)
    while os.getppid() == parent:  # a fork of the parent can keep our input open after its death
        if not ready.poll(5000):
            continue
        line = chunk = os.read(0, 1 << 16)  # the next request comes only after our answer
        while chunk and not line.endswith(b"\n"):
            line += (chunk := os.read(0, 1 << 16))
        if not chunk:
            break
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(judge(json.loads(line)), file=out, flush=True)


if __name__ == "__main__":
    main()
