# SPDX-License-Identifier: Apache-2.0
r"""One spelling for what an answer says: typography is undone here, nothing is compared.

In a spelled text arguments stand in braces, signs of Unicode are commands, fonts and layout are gone, `and` and `or`
are `\and` and `\or`, numbers are exact, and `\text{...}` holds a known unit or words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from fractions import Fraction
from math import prod
from pathlib import Path

_TABLES = json.loads(Path(__file__).with_name("reward_tables.json").read_text("utf-8"))
FUNCTIONS, GREEK, ACCENTS, FONTS = (_TABLES[name].split() for name in ("functions", "greek", "accents", "fonts"))
COMMANDS = {name: meaning for meaning, names in _TABLES["commands"].items() for name in names.split()}
SIGNS = str.maketrans({sign: meaning for meaning, signs in _TABLES["signs"].items() for sign in signs})
UNITS = {name: unit for unit, names in _TABLES["units"].items() for name in names.split()}
SCALES, DROPPED = _TABLES["scales"], _TABLES["dropped"]
ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1, "mathbb": 1, "begin": 1, "end": 1, **dict.fromkeys(ACCENTS, 1)}
WITHOUT = {*GREEK, *FUNCTIONS, *"pi infty cdot in cup cap le ge ne and or pm mp circ".split()}  # noqa: SIM905
FACTOR = re.compile(r"\s*(/|per\b)?\s*(?:(sq|cu)(?:uare|bic)?\b\s*)?(\\?[^\W\d_]+|[%$€£¥₹°¢])((?:\s*\^\s*-?\d|\d)*)")


def unit_of(words: str) -> str | None:
    """A unit in one spelling, as `cm^2` for "square centimeters"; None where a word is no unit."""
    words = re.sub(r"\\(?:text|mathrm|cdot)|\\[,;:! ]|[~{}.]|-(?=[a-zA-Z])", " ", words.replace("per cent", "%"))
    words = re.sub(r"\\mu\s+", r"\\mu", re.sub(r"\bk(?:m?ph|mh)\b", "km/h", words.replace("mph", "mi/h")))
    powers, sign = Counter(), 1
    for over, power, word, exponents in FACTOR.findall(words):
        low = word.lower()
        known = [w for w in (word, low, low.removesuffix("s"), low.removesuffix("es")) if w in UNITS]
        if not known or (len(word) == 1 and known[0] != word):
            return None
        sign = -1 if over else sign
        powers[UNITS[known[0]]] += (
            sign * {"sq": 2, "cu": 3}.get(power, 1) * prod(map(int, re.findall(r"-?\d", exponents)))
        )
    left = FACTOR.sub("", words).strip()
    return None if left else " ".join(f"{u}^{p}" if p != 1 else u for u, p in sorted(powers.items())) or None


def quantity(text: str) -> str | None:
    """`million dollars` as a factor and a unit, spelled; None for other words."""
    factor, words = "", text.replace("~", " ").split()
    while words and words[0].lower() in SCALES:
        factor += rf"\cdot 10^{{{SCALES[words.pop(0).lower()]}}}"
    unit = unit_of(" ".join(words)) if words else ""
    return None if unit is None else (factor + rf"\text{{{unit}}}" * bool(unit)) or None


def spell(text: str, thousands: bool = False) -> str:
    """Rewrite an answer in one spelling; `thousands`: 2,500 is one number and not two.

    Raises:
        ValueError: brackets do not match, or an argument is missing.
    """
    text = text.strip().strip("\u200b\ufeff\u200e\u200f").translate(SIGNS)
    text = re.sub("[！-～\u3000𝐀-𝟿]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)  # noqa: RUF001
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿⁱ]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text).translate(SIGNS)
    text = re.sub("[₀-₉₊₋ₙᵢ]+", lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    if r"\begin" not in text:  # escaped twice
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    text = re.sub(r"\\(?:left|right)(?![a-z]) *\.?|\\! *|\\q?quad|(?<!\\)\\$|\b(?:np|math)\.(?=[a-z])", "", text)
    text = re.sub(r"\\\\|\\([,;:> ()\[\]])|\\([A-Za-z]+)\*?", _command, text).strip()
    while m := re.fullmatch(rf"\\(?:{'|'.join(FONTS)}) *\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}\.?", text):
        text = m[1].strip()
    if len(re.findall(r"(?<!\\)\$", text)) != 1:  # a single one is money
        text = re.sub(r"(?<!\\)\$", " ", text)
    for sign, command in (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne "), ("...", r"\ldots "), ("~", " ")):
        text = text.replace(sign, command)
    text = re.sub(r"\{array\}( *\{[^{}]*\})?", "{matrix}", text)
    text = re.sub(r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}", text)
    text = _Structure(text).until("")
    if thousands:
        grouped = r"(?<![\d,(\[.])(?<!\\\{)\d{1,3}(?:,\d{3})+(?![\d)\]]|,\d|\\\})"
        text = re.sub(grouped, lambda m: m[0].replace(",", ""), text)
    text = re.sub(
        r"(\\text\{[^{}]*\})|(\\[A-Za-z]+\s)\s*(?=[A-Za-z])|\s+", lambda m: m[1] or m[2] or "", _numbers(text)
    )
    return re.sub(r"\^\{('+)\}", r"\1", text).lstrip("=").rstrip(".,;:")


def _command(m: re.Match[str]) -> str:
    name = m[2]
    if not name:
        return " " if m[1] else m[0]
    if name[:-1] in FUNCTIONS and name not in FUNCTIONS:  # \sinx
        return rf"\{name[:-1]} {name[-1]}"
    return COMMANDS.get(name, rf"\{name}")


def _numbers(text: str) -> str:
    """Every number exact: groups of three, mixed numbers, powers of ten, repeating and finite decimals."""
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)|\d'(?=\d{3})", lambda m: re.sub("[ ']", "", m[0]), text)
    text = re.sub(r"(?<![\d.])(\d+) +(\d+) */ *(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<![\d.])(\d+) *(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", text)
    text = re.sub(r"([\d.]) +(?=[\d.])", r"\1\&", text)  # side by side: no number
    text = re.sub(r"(?<=[\d.])[eE]\+?(-?\d+)(?![\d.])|(?<=\d) *[xX] *(10\^\{-?\d+\})", _power, text)
    period = r"(?:\\(?:overline|bar|dot)\{(\d+)\}(?:(\d*)\\dot\{(\d)\})?|\((\d+)\))"
    text = re.sub(rf"(\d*)\.(\d*) *{period}", _repeating, text)
    text = re.sub(r"(?<![\d.])\d*\.\d+(?![\d.])", lambda m: _fraction(Fraction(m[0])), text)
    return re.sub(r"(\d)\.(?!\d)", r"\1", text)


def _power(m: re.Match[str]) -> str:
    return r"\cdot " + (m[2] or f"10^{{{m[1]}}}")


def _repeating(m: re.Match[str]) -> str:
    head, tail, period = m[1], m[2], "".join(filter(None, m.groups()[2:]))
    whole = int(head + tail + period) - int(head + tail or 0)
    return _fraction(Fraction(whole, 10 ** len(tail) * (10 ** len(period) - 1)))


def _fraction(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


class _Structure:
    """Reads tokens once from left to right: arguments get braces, other braces go, words become units or text."""

    def __init__(self, text: str) -> None:
        self.tokens = re.findall(r"\\(?:[A-Za-z]+|.)|[^\W\d_]{2,}|.", text, re.DOTALL)[::-1]

    def peek(self) -> str:
        while self.tokens and self.tokens[-1].isspace():
            self.tokens.pop()
        return self.tokens[-1] if self.tokens else ""

    def take(self, token: str) -> bool:
        return self.peek() == token and bool(self.tokens.pop())

    def until(self, close: str) -> str:
        """Everything up to a closing bracket, or the end."""
        out = ""
        while self.tokens and self.tokens[-1] != close:
            out += self.item(out)
        if close and not self.take(close):
            raise ValueError(f"no {close}")
        return out

    def raw(self, _: str = "") -> str:
        """The next token, or what its braces hold, as it is written."""
        text, depth = "", 0
        while self.peek() and (depth or not text):
            token = self.tokens.pop()
            depth += (token == "{") - (token == "}")
            text += token + " " * (bool(self.tokens) and self.tokens[-1].isspace())
        return " ".join((text.strip()[1:-1] if text[:1] == "{" else text).split())

    def item(self, before: str) -> str:
        token = self.tokens.pop()
        name = token[1:] if token[0] == "\\" else ""
        if token == "{":
            return self.until("}")
        if token in ("^", "_"):
            return f"{token}{{{self.script(single=token == '_' and before.rstrip().endswith('log'))}}}"
        if token.lstrip("\\") in UNITS and not token.isalnum() and not name.isalpha():
            return rf"\text{{{UNITS[token[-1]]}}}"
        if name in DROPPED:
            return "".join(self.argument() for _ in range(DROPPED[name]))[:0]
        if name in FONTS:
            return self.font(before, upright=name not in ("mathbf", "mathit", "boldsymbol", "bm", "pmb"))
        if name in ARGUMENTS:
            root = f"[{self.until(']')}]" if name == "sqrt" and self.take("[") else ""
            argument = self.raw if name in ("begin", "end") else self.argument
            return token + root + "".join(f"{{{argument(name)}}}" for _ in range(ARGUMENTS[name]))
        if name in FUNCTIONS and self.take("{"):
            return f"{token}({self.until('}')})"
        if name.isalpha():
            held = name not in WITHOUT and self.peek() == "{"  # an argument of a command that is not known
            return token + (f"{{{self.raw()}}}" if held else " ")
        return self.word(token, before) if len(token + name) > 1 or not token.isascii() else token

    def argument(self, name: str = "") -> str:
        token = self.peek()
        if not token:
            raise ValueError("no argument")
        if self.take("{") or (name == "sqrt" and self.take("(")):
            return self.until("}" if token == "{" else ")")
        if len(token) > 1 and token[0] != "\\":
            self.tokens[-1] = token[1:]
            return token[0]
        return self.item("")

    def script(self, single: bool) -> str:
        """An exponent or an index: without braces a whole number with its sign, or what parentheses hold."""
        number = self.tokens.pop() if self.peek() in ("+", "-") else ""
        while self.tokens and self.tokens[-1].isdigit() and not (single and number):
            number += self.tokens.pop()
        if number[-1:].isdigit():
            return number
        return number + (self.until(")") if self.take("(") else self.argument())

    def font(self, before: str, upright: bool) -> str:
        """Words in a font: a unit where a value precedes, a formula if only its font is changed, else text."""
        words = self.raw()
        placed = upright and before.rstrip()[-1:] not in "+-=<>([{^_,;:|"
        unit = quantity(words) if placed else None
        plain = re.findall(r"(?<![\\A-Za-z])[^\W\d_]{2,}", words)
        if unit is None and words.isascii() and all(w.isupper() or w in {*FUNCTIONS, "and", "or", "pi"} for w in plain):
            return f" {_Structure(words).until('')} "
        return unit or rf"\text{{{re.sub('[{}]', '', words)}}}"

    def word(self, word: str, before: str) -> str:
        low = word.lower()
        if word in FUNCTIONS or low in ("sqrt", "pi", "infty", "inf", "infinity"):
            self.tokens.append("\\" + {"inf": "infty", "infinity": "infty"}.get(low, low))
            return self.item(before)
        if low in ("and", "or"):
            return rf"\{low} "
        if re.search(r"[\d})\]!]\s*$", before) or (word.isupper() and not before.strip() and self.peek().isdigit()):
            following = self.tokens[:-13:-1] if before.strip() else []  # USD 5
            for n in range(len(following), -1, -1):
                if unit := quantity(word + "".join(following[:n])):
                    del self.tokens[len(self.tokens) - n :]
                    return unit
        return rf"\text{{{word}}}" if len(word) > 3 and not word.isupper() else word
