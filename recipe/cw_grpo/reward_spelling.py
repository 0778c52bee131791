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
from pathlib import Path

TABLES = json.loads(Path(__file__).with_name("reward_tables.json").read_text("utf-8"))
FUNCTIONS, GREEK, ACCENTS, FONTS = (TABLES[name].split() for name in ("functions", "greek", "accents", "fonts"))
COMMANDS = {name: meaning for meaning, names in TABLES["commands"].items() for name in names.split()}
SIGNS = str.maketrans({sign: meaning for meaning, signs in TABLES["signs"].items() for sign in signs})
UNITS = {name: unit for unit, names in TABLES["units"].items() for name in names.split()}
BARE = f"{TABLES['read']} {TABLES['joins']}".split()
ARGUMENTS = {**TABLES["arguments"], **dict.fromkeys(ACCENTS, 1)}
FACTOR = re.compile(r"\s*(/|per\b)?\s*(?:(sq|cu)(?:uare|bic)?\b\s*)?(\\?[^\W\d_]+|[%$€£¥₹°¢])\s*\^?\s*(-?\d+)?")
WORDS = r"(?i:no)|(?=[A-Za-z ]{3})(?=.*[aeiou])(?!.*\b(?:and|or)\b)[A-Za-z' -]*[a-z][a-z' ]*"
BARE_UNIT = re.compile(r"(?<=[\d})\]]) *((?:[^\W\d_]{2,}|[^\x00-\x7f]|m[²³])[\w ./^-]*)(?=$|[,;=])")


def unit_of(words: str) -> str | None:
    """A unit in one spelling, as `cm^2` for "square centimeters"; None where a word is no unit."""
    words = re.sub(r"\\(?:text|mathrm|cdot)|\\[,;:! ]|[~{}]|-(?=[a-zA-Z])", " ", words).replace(".", "")
    powers, sign = Counter(), 1
    for over, power, word, exponent in FACTOR.findall(unicodedata.normalize("NFKC", words)):
        names = [word] if len(word) == 1 else [word, word.lower(), *map(word.lower().removesuffix, ("s", "es"))]
        known = [UNITS[name] for name in names if name in UNITS]
        if not known:
            return None
        sign = -1 if over else sign
        powers[known[0]] += sign * int(exponent or {"sq": 2, "cu": 3}.get(power, 1))
    left = FACTOR.sub("", words).strip()
    return None if left else " ".join(f"{u}^{p}" if p != 1 else u for u, p in sorted(powers.items())) or None


def spell(text: str, thousands: bool = False) -> str:
    """Rewrite an answer in one spelling, 2,500 as one number if `thousands`; a ValueError if brackets do not match."""
    text = text.strip().strip("\u200b\ufeff\u200e\u200f")
    while m := re.fullmatch(rf"\\(?:{'|'.join(FONTS)}) *\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}\.?", text):
        text = m[1].strip()
    if re.fullmatch(WORDS, text):
        said = re.sub(r"(?i)\b(?:the|an?) ", "", text).casefold()
        return rf"\text{{{said.removesuffix('s')}}}"
    text = BARE_UNIT.sub(lambda m: rf"\text{{{m[1]}}}" if unit_of(m[1]) else m[0], text)
    text = _typography(text)
    text = _Structure(text).until("")
    if thousands:
        grouped = r"(?<![\d,(\[.])(?<!\\\{)\d{1,3}(?:,\d{3})+(?![\d)\]]|,\d|\\\})"
        text = re.sub(grouped, lambda m: m[0].replace(",", ""), text)
    spaces = r"(\\text\{[^{}]*\})|(\\[A-Za-z]+ )\s*|\s+"  # they stay in words and behind commands
    text = re.sub(spaces, lambda m: m[1] or m[2] or "", _numbers(text))
    return re.sub(r"\^\{('+)\}", r"\1", text).lstrip("=").rstrip(".,;:")


def _typography(text: str) -> str:
    """Signs and commands that look different and mean the same."""
    text = re.sub("[！-～\u3000𝐀-𝟿]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)  # noqa: RUF001
    for mark, signs in (("^", "⁰¹²³⁴-⁹⁺⁻ⁿⁱ"), ("_", "₀-₉₊₋ₙᵢ")):
        raised = re.compile(f"[{signs}]+")
        text = raised.sub(lambda m, mark=mark: f"{mark}{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = text.translate(SIGNS)
    if r"\begin" not in text:  # escaped twice
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    text = re.sub(r"\\(?:left|right)(?![a-z]) *\.?|\\! *|\\q?quad|(?<!\\)\\$", "", text)
    text = re.sub(r"(?<!\\)\\([,;:> ()\[\]])", " ", text)
    text = re.sub(r"\\([A-Za-z]+)\*?", lambda m: COMMANDS.get(m[1], rf"\{m[1]}"), text).strip()
    for sign, command in TABLES["ascii"].items():
        text = text.replace(sign, command)
    return re.sub(r"\{array\}( *\{[^{}]*\})?", "{matrix}", re.sub(r"(?<!\\)\$", " ", text))


def _numbers(text: str) -> str:
    """Every number exact: groups of three, mixed numbers, powers of ten, repeating and finite decimals."""
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)", lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?<![\d.])(\d+) +(\d+) */ *(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<![\d.])(\d+) *(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", text)
    text = re.sub(r"([\d.]) +(?=[\d.])", r"\1\&", text)  # side by side: no number
    text = re.sub(r"(?<=[\d.])[eE]\+?(-?\d+)(?![\d.])", r"\\cdot 10^{\1}", text)
    text = re.sub(r"(?<![\d.])(\d*)\.(\d*)(?: *\\(?:bar|dot)\{(\d+)\}|(?<=\d)(?![\d.]))", _fraction, text)
    return re.sub(r"(\d)\.(?!\d)", r"\1", text)


def _fraction(m: re.Match[str]) -> str:
    whole, digits, period = (m[1], m[2], m[3]) if m[3] else (m[1], m[2], "0")
    repeated = int(whole + digits + period) - int(whole + digits or 0)
    value = Fraction(repeated, 10 ** len(digits) * (10 ** len(period) - 1))
    near = value.limit_denominator(1000)
    if 15 < len(digits) < 18 and abs(value - near) < Fraction(1, 2 * 10**16):  # as a computer prints it
        value = near
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


class _Structure:
    """Reads tokens once from left to right: arguments get braces, other braces go, words become units or text."""

    def __init__(self, text: str) -> None:
        self.tokens = re.findall(r"\\(?:[A-Za-z]+|.)|[^\W\d_]{2,}|.", text, re.DOTALL)[::-1]

    def take(self, token: str) -> bool:
        """Is this the next token? Spaces before it, and the token itself, are then gone."""
        while self.tokens and self.tokens[-1].isspace():
            self.tokens.pop()
        return bool(self.tokens) and self.tokens[-1] == token and bool(self.tokens.pop())

    def until(self, close: str) -> str:
        """Everything up to a closing bracket, or the end."""
        out = ""
        while self.tokens and self.tokens[-1] != close:
            out += self.item(out)
        if close and not self.take(close):
            raise ValueError(f"no {close}")
        return out

    def raw(self) -> str:
        """What braces hold, as it is written, or the next token."""
        if not self.take("{"):
            return self.tokens.pop() if self.tokens else ""
        text, depth = "", 1
        while self.tokens and depth:
            text += self.tokens.pop()
            depth += (text[-1] == "{" != text[-2:-1]) - (text[-1] == "}")
        return text[:-1].strip()

    def item(self, before: str) -> str:
        token = self.tokens.pop()
        name = token[1:] if token[0] == "\\" else ""
        if token == "{":
            return self.until("}")
        if token in ("^", "_"):
            return f"{token}{{{self.argument(1 if before.rstrip().endswith('log') else 512)}}}"
        if token.lstrip("\\") in UNITS and not token.isalnum() and not name.isalpha():
            return rf"\text{{{UNITS[token[-1]]}}}"
        if name in TABLES["dropped"].split():
            return self.raw()[:0]
        if name in FONTS:
            return self.font(before, self.raw())
        if name in ARGUMENTS:
            if name == "sqrt" and self.take("("):
                return rf"\sqrt{{{self.until(')')}}}"
            root = f"[{self.until(']')}]" if name == "sqrt" and self.take("[") else ""
            return token + root + "".join(f"{{{self.argument()}}}" for _ in range(ARGUMENTS[name]))
        if name.isalpha():
            known = name in GREEK or name in FUNCTIONS or name in BARE
            self.take("")
            held = not known and self.tokens[-1:] == ["{"]  # an argument of a command that is not known
            return token + (f"{{{self.raw()}}}" if held else " ")
        return self.word(token) if len(token + name) > 1 else token

    def argument(self, digits: int = 1) -> str:
        """What braces hold; without them one token, or in an index or exponent a whole number with its sign."""
        if self.take("{"):
            return self.until("}")
        number = "-" if digits > 1 and self.take("-") else ""
        while self.tokens and self.tokens[-1].isdigit() and len(number) < digits:
            number += self.tokens.pop()
        if number[-1:].isdigit():
            return number
        if not self.tokens:
            raise ValueError("no argument")
        if self.tokens[-1].isalpha():
            self.tokens[-1:] = self.tokens[-1][::-1]  # letter by letter
        return number + self.item("")

    def font(self, before: str, words: str) -> str:
        """Words in a font: a unit where a value precedes, a formula where there are no words, else text."""
        placed = before.strip() and before.rstrip()[-1] not in "+-=<>([{^_,;:|"
        unit = unit_of(words) if placed else None
        plain = re.findall(r"(?<![\\A-Za-z])[^\W\d_]{2,}", words)
        if unit is None and words.isascii() and all(w.isupper() or w in (*FUNCTIONS, "and", "or", "pi") for w in plain):
            return f" {_Structure(words).until('')} "
        return rf"\text{{{unit or re.sub('[{}]', '', words)}}}"

    def word(self, word: str) -> str:
        known = {"and": r"\and ", "or": r"\or ", "pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty "}
        if word in FUNCTIONS or word == "sqrt":
            self.tokens.append(f"\\{word}")
            return self.item("")
        return known.get(word.lower()) or (rf"\text{{{word}}}" if len(word) > 3 and not word.isupper() else word)
