r"""One spelling for what an answer says: `spell` undoes typography, `unit_of` names units; nothing is compared here.

In the spelled text arguments have braces, Unicode signs are commands, fonts and layout are gone, `and` and `or` are
`\and` and `\or`, numbers are exact and `\text{...}` holds either a known unit or words.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

FUNCTIONS = frozenset(
    "arcsin arccos arctan arccot arcsec arccsc arsinh arcosh artanh sinh cosh tanh coth sin cos tan cot sec csc "
    "log lg ln exp".split()
)
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar"
).split()
ACCENTS = frozenset("bar hat vec dot ddot tilde overline widehat widetilde overrightarrow".split())
ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1, "mathbb": 1, **dict.fromkeys(ACCENTS, 1)}
PLAIN = frozenset(
    [*GREEK, *FUNCTIONS, "pi", "infty", "cdot", "in", "cup", "cap", "le", "ge", "ne", "and", "or", "pm", "mp"]
)
FONTS = frozenset(
    "text textrm textbf textit textnormal texttt textsf textup mathrm mathbf mathit mathsf mathtt mathnormal "
    "boldsymbol bm pmb mbox hbox operatorname emph".split()
)
DROPPED = {"color": 1, "label": 1, "tag": 1, "hspace": 1, "vspace": 1, "phantom": 1, "textcolor": 1}
"""Commands without meaning, and how many of their arguments have none either."""

LAYOUT = frozenset(
    "displaystyle textstyle scriptstyle limits nolimits quad qquad middle big Big bigg Bigg bigl bigr Bigl "
    "Bigr biggl biggr Biggl Biggr tiny small normalsize large Large huge boxed fbox rm bf it sf thinspace relax "
    "centering displaylines".split()
)
COMMANDS = {
    **dict.fromkeys("dfrac tfrac cfrac".split(), r"\frac "),
    **dict.fromkeys("dbinom tbinom".split(), r"\binom "),
    **dict.fromkeys("leq leqslant".split(), r"\le "),
    **dict.fromkeys("geq geqslant".split(), r"\ge "),
    **dict.fromkeys("times ast".split(), r"\cdot "),
    **dict.fromkeys("vert lvert rvert mid".split(), "|"),
    **dict.fromkeys("dots cdots".split(), r"\ldots "),
    **{f"var{name}": rf"\{name} " for name in "epsilon phi theta rho sigma kappa".split()},
    "lt": "<", "gt": ">", "neq": r"\ne ", "div": "/", "colon": ":", "langle": "(", "rangle": ")",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "varnothing": r"\emptyset ", "degree": r"^\circ ",
    "prime": "'", "tg": r"\tan ", "ctg": r"\cot ", "arctg": r"\arctan ", "yen": "¥", "pounds": "£", "euro": "€",
    "i": "i", "imath": "i", "backslash": r"\setminus ", "R": r"\mathbb{R}",
}  # fmt: skip
SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "*": r"\cdot ",  # noqa: RUF001
    "÷": "/", "∕": "/", "⁄": "/", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",  # noqa: RUF001
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ",  # noqa: RUF001
    "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "’": "'", "′": "'", "″": "''", "∠": r"\angle ",  # noqa: RUF001
    "△": r"\triangle ", "…": r"\ldots ", "≈": r"\approx ", "⟨": "(", "⟩": ")", "、": ",", "‰": r"\text{permille}",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2061": "", "∣": "|",  # noqa: RUF001
}  # fmt: skip
SCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢ"

SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
_PREFIXES = {"k": "kilo", "c": "centi", "m": "milli", "M": "mega", "d": "deci", r"\mu": "micro", "n": "nano"}
_METRIC = "m=meter,metre g=gram,gramme L=liter,litre,l s=second,sec J=joule W=watt N=newton V=volt Hz=hertz Pa=pascal"
_OTHER = """min=minute h=hour,hr day=d,天 week month year=yr in=inch,inche ft=foot,feet yd=yard mi=mile lb=pound,lbs
oz=ounce t=ton,tonne gal=gallon A=ampere,amp K=kelvin C=coulomb ohm=\\Omega mol=mole eV rad=radian sr %=percent,pct,percentage
deg=degree,^\\circ,度 $=dollar,usd,buck cent=¢ €=euro,eur £=gbp ¥=yuan,rmb,cny,元,yen,jpy,圆 ₹=rupee,rs,inr
unit erg dyne calorie=cal kcal knot bar atm psi lumen lux tesla=T farad henry acre hectare=ha cc=cm^3 rpm dB=decibel km=公里,千米 m=米 cm=厘米,公分 mm=毫米 kg=千克,公斤 h=小时 min=分钟 s=秒
people=person,人 student child=children man=men woman=women boy girl worker player member team family apple orange
book ball card coin marble ticket stamp page word letter digit step way time=次 point vertex=vertices edge side face
triangle square circle rectangle region square piece=个,块 item=件 set pair group row column game match day trip car bus
animal dog cat cow chicken sheep rabbit fish bird tree flower egg cookie cake candy=candies bottle box cup bag bowl
chair table room house seat number integer solution root term factor divisor element subset permutation arrangement
combination path route color possibility=possibilities outcome case question problem pencil pen toy shirt slice pizza
tile block cube dice=die hand handshake vote degree byte bit year=years,年,岁 种 名 only"""


def _units() -> dict[str, str]:
    table: dict[str, str] = {}
    for entry in (_METRIC + " " + _OTHER).split():
        name, _, aliases = entry.partition("=")
        for alias in [name, *filter(None, aliases.split(","))]:
            table.setdefault(alias, name)
            if entry in _METRIC.split():
                for short, long in _PREFIXES.items():
                    table.setdefault((short if len(alias) < 3 else long) + alias, short + name)
    return table


UNITS = _units()


def unit_of(text: str) -> str | None:
    """A unit in one spelling, as `cm^2` for "square centimeters"; None if any word of the text is no unit."""
    text = re.sub(r"\\(?:text|mathrm|cdot)|\\[,;:! ]|[~{}.]|-(?=[a-zA-Z])", " ", text)
    text = re.sub(r"\bk(?:m?ph|mh)\b", "km/h", re.sub(r"\bmph\b", "mi/h", text))
    text = re.sub(r"\bper\b", "/", re.sub(r"\bper cent\b", "percent", text))
    powers: dict[str, int] = {}
    sign, power, last = 1, 1, ""
    for word in re.findall(
        r"\^?-?\d+|\^?\\?[^\W\d_]+|\S", re.sub(r"\^ *(?=-?\d)|(?<=\\mu) +", lambda m: m[0].strip(), text)
    ):
        low = word.lower()
        if word == "/":
            sign = -1
        elif low in ("square", "sq", "cubic", "cu"):
            power = 2 if low[0] == "s" else 3
        elif re.fullmatch(r"\^-?\d+", word) and last:
            powers[last] *= int(word[1:])
        else:
            tries = [word] if len(word) == 1 else [word, low, low.removesuffix("s"), low.removesuffix("es")]
            last = next((UNITS[w] for w in tries if w in UNITS), "")
            if not last:
                return None
            powers[last], power = powers.get(last, 0) + sign * power, 1
    return " ".join(f"{u}^{p}" if p != 1 else u for u, p in sorted(powers.items())) or None


def quantity(text: str) -> str | None:
    """`million dollars` as a factor and a unit, spelled; None for other words."""
    factor, words = "", text.replace("~", " ").split()
    while words and words[0].lower() in SCALES:
        factor += rf"\cdot 10^{{{SCALES[words.pop(0).lower()]}}}"
    unit = unit_of(" ".join(words)) if words else ""
    return None if unit is None or not (unit or factor) else factor + (rf"\text{{{unit}}}" if unit else "")


def spell(text: str, thousands: bool = False) -> str:
    """Rewrite an answer in one spelling; `thousands`: 2,500 is one number and not two.

    Raises:
        ValueError: braces do not match, or an argument is missing.
    """
    text = _signs(text.strip().strip("\u200b\ufeff\u200e\u200f"))
    text = re.sub(r"\\(?:left|right)(?![a-z]) *\.?|\\! *|(?<!\\)\\$", "", text)
    text = re.sub(r"\\\\|\\([,;:> ()\[\]])|\\([A-Za-z]+)\*?", _command, text).strip()
    while m := re.fullmatch(rf"\\(?:{'|'.join(FONTS)}) *\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}\.?", text):
        text = m[1].strip()
    if len(re.findall(r"(?<!\\)\$", text)) != 1:  # a single one is money
        text = re.sub(r"(?<!\\)\$", " ", text)
    for sign, command in (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne "), ("...", r"\ldots "), ("~", " ")):
        text = text.replace(sign, command)
    text = re.sub(r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}", text)
    text = _Structure(re.sub(r"\b(?:np|math|sympy)\.(?=[a-z])", "", text)).until("")
    if thousands:
        text = re.sub(
            r"(?<![\d,(\[.])(?<!\\\{)\d{1,3}(?:,\d{3})+(?![\d)\]]|,\d|\\\})", lambda m: m[0].replace(",", ""), text
        )
    text = _numbers(text)
    text = re.sub(
        r"(\\text\{[^{}]*\})|(\\[A-Za-z]+)\s+(?=[A-Za-z])|\s+", lambda m: m[1] or (m[2] or "") + " " * bool(m[2]), text
    )
    return re.sub(r"\^\{('+)\}", r"\1", text).lstrip("=").rstrip(".,;:")


def _signs(text: str) -> str:
    """Unicode signs as LaTeX; letters and digits of other scripts stay as they are."""
    for signs, script in zip(SCRIPTS, "^_", strict=True):
        text = re.sub(f"[{signs}]+", lambda m, s=script: f"{s}{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    return "".join(map(_sign, text))


def _sign(c: str) -> str:
    if c.isascii() or c in SIGNS:
        return SIGNS.get(c, c)
    name = unicodedata.name(c, "")
    if name.startswith("VULGAR FRACTION"):
        numerator, _, denominator = unicodedata.normalize("NFKC", c).partition("⁄")
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    if m := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name):
        letter = m[2].lower().replace("lamda", "lambda")
        return f"\\{letter.capitalize() if m[1] == 'CAPITAL' else letter} "
    if name.startswith(
        ("FULLWIDTH", "MATHEMATICAL", "IDEOGRAPHIC SPACE", "MICRO", "MINUS", "SUPERSCRIPT", "SUBSCRIPT")
    ):
        return "".join(map(_sign, unicodedata.normalize("NFKC", c)))
    return c


def _command(m: re.Match[str]) -> str:
    name = m[2]
    if name and name[:-1] in FUNCTIONS and name not in FUNCTIONS:
        return rf"\{name[:-1]} {name[-1]}"
    return (" " if m[1] else m[0]) if name is None else " " if name in LAYOUT else COMMANDS.get(name, "\\" + name)


class _Structure:
    """Reads tokens once from left to right: arguments get braces, other braces go, words become units or text."""

    def __init__(self, text: str) -> None:
        self.tokens = re.findall(r"\\(?:[A-Za-z]+|.)|[^\W\d_]{2,}|.", text, re.DOTALL)
        self.tokens.reverse()

    def peek(self) -> str:
        while self.tokens and self.tokens[-1].isspace():
            self.tokens.pop()
        return self.tokens[-1] if self.tokens else ""

    def until(self, close: str) -> str:
        """Everything up to a closing bracket, or the end."""
        out = ""
        while self.tokens and self.tokens[-1] != close:
            out += self.item(out)
        if close and not self.tokens:
            raise ValueError(f"no {close}")
        if close:
            self.tokens.pop()
        return out

    def item(self, before: str) -> str:
        token = self.tokens.pop()
        name = token[1:] if token[0] == "\\" else ""
        if token == "{":
            return self.until("}")
        if token in ("^", "_"):
            return f"{token}{{{self.script(single=before.rstrip().endswith('log') and token == '_')}}}"
        if token in ("$", "%", r"\$", r"\%") or token in "£€¥₹¢":
            return rf"\text{{{UNITS.get(token[-1], token[-1])}}}"
        if name in DROPPED:
            for _ in range(DROPPED[name]):
                self.argument()
            return ""
        if name in FONTS:
            return self.font(name, before)
        if name in ("begin", "end") and self.peek() == "{":
            return f"{token}{{{self.raw()}}}" + (f"{{{self.raw()}}}" if self.tokens and self.tokens[-1] == "{" else "")
        if name in ARGUMENTS:
            return token + self.root(name) + "".join(f"{{{self.argument(name)}}}" for _ in range(ARGUMENTS[name]))
        if name in FUNCTIONS and self.peek() == "{":
            self.tokens.pop()
            return f"{token}({self.until('}')})"
        if name:
            held = "".join(f"{{{self.raw()}}}" for _ in range(2) if name not in PLAIN and self.peek() == "{")
            return token + " " * name.isalpha() + held * (held != "{}")
        return self.word(token, before) if len(token) > 1 or (token.isalpha() and not token.isascii()) else token

    def root(self, name: str) -> str:
        if name != "sqrt" or self.peek() != "[":
            return ""
        self.tokens.pop()
        return f"[{self.until(']')}]"

    def argument(self, name: str = "") -> str:
        token = self.peek()
        if not token:
            raise ValueError("no argument")
        if token == "{" or (token == "(" and name == "sqrt"):
            self.tokens.pop()
            return self.until("}" if token == "{" else ")")
        if len(token) > 1 and token[0] != "\\":
            self.tokens[-1] = token[1:]
            return token[0]
        return self.item("")

    def raw(self) -> str:
        """The next token, or what its braces hold, as it is written."""
        text, depth = "", self.peek() == "{"
        while self.tokens:
            token = self.tokens.pop()
            depth += (token == "{") - (token == "}") if text else 0
            text += token
            if not depth:
                break
        return text[1:-1] if text[:1] == "{" else text

    def script(self, single: bool) -> str:
        """An exponent or an index; without braces a whole number with its sign, or parentheses."""
        number = self.tokens.pop() if self.peek() in ("+", "-") else ""
        while self.tokens and self.tokens[-1].isdigit() and not (single and number):
            number += self.tokens.pop()
        if number and number[-1].isdigit():
            return number
        if self.peek() == "(":
            self.tokens.pop()
            return number + self.until(")")
        return number + self.argument()

    def font(self, name: str, before: str) -> str:
        """Words in a font: a unit where a value precedes, a formula if only its font is changed, else text."""
        words = " ".join(self.raw().split())
        placed = before.rstrip() and before.rstrip()[-1] not in "+-=<>([{^_,;:|"
        if placed and name not in ("mathbf", "mathit", "boldsymbol", "bm", "pmb") and (unit := quantity(words)):
            return unit
        plain = re.findall(r"(?<![\\A-Za-z])[^\W\d_]{2,}", words)
        if all(w.isupper() or w in FUNCTIONS or w in ("and", "or", "pi") for w in plain) and words.isascii():
            return f" {_Structure(words).until('')} "
        return rf"\text{{{re.sub(r'[{}]', '', words)}}}"

    def word(self, word: str, before: str) -> str:
        low = word.lower()
        if word in FUNCTIONS or low in ("sqrt", "pi", "infty", "inf", "infinity"):
            self.tokens.append({"inf": r"\infty", "infinity": r"\infty"}.get(low, "\\" + low))
            return self.item(before)
        if low in ("and", "or"):
            return rf"\{low} "
        if re.search(r"[\d})\]!]\s*$", before) or (word.isupper() and not before.strip() and self.peek().isdigit()):
            following = self.tokens[:-13:-1]
            for n in range(len(following), -1, -1):
                if unit := quantity(word + "".join(following[:n])):
                    del self.tokens[len(self.tokens) - n :]
                    return unit
        return rf"\text{{{word}}}" if len(word) > 3 and not word.isupper() else word


def _numbers(text: str) -> str:
    """Every number exact: thousands in groups, mixed numbers, powers of ten, repeating and finite decimals."""
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)", lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?<=\d)'(?=\d{3})", "", text)
    text = re.sub(r"(?<![\d.])(\d+) +(\d+) */ *(\d+)(?!\d)", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\d.])(\d+) *\\frac\{(\d+)\}\{(\d+)\}", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"([\d.]) +(?=[\d.])", r"\1\&", text)  # side by side: no number
    text = re.sub(r"(?<=[\d.])[eE]\+?(-?\d+)(?![\d.])", r"\\cdot 10^{\1}", text)
    text = re.sub(r"(?<=\d) *[xX] *(?=10\^)", r"\\cdot ", text)
    period = r"(?:\\(?:overline|bar|dot)\{(\d+)\}(?:(\d*)\\dot\{(\d)\})?|\((\d+)\))"
    text = re.sub(rf"(\d*)\.(\d*) *{period}", _repeating, text)
    text = re.sub(r"(?<![\d.])\d*\.\d+(?![\d.])", lambda m: _fraction(Fraction(m[0])), text)
    return re.sub(r"(\d)\.(?!\d)", r"\1", text)


def _repeating(m: re.Match[str]) -> str:
    head, tail, period = m[1], m[2], "".join(filter(None, m.groups()[2:]))
    value = Fraction(int(head + tail + period) - int(head + tail or 0), 10 ** len(tail) * (10 ** len(period) - 1))
    return _fraction(value)


def _fraction(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
