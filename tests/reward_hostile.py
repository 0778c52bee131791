# SPDX-License-Identifier: Apache-2.0
"""Outputs of a policy that wants to fool, hang or crash its reward; for the tests and `scripts/reward_stress.py`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

REFERENCE = "27182"
"""The reference of every hostile output. None of them is right."""


@dataclass(frozen=True)
class Output:
    response: str
    reference: str
    acc: float
    hangs: bool = False


def box(answer: str) -> str:
    return f"<think>Let me think.</think>\nThe answer is $\\boxed{{{answer}}}$."


HANGS = [
    "9^{9^{9^9}}",
    "1000000000!",
    "10^{10^{10}}+1",
    "3^{10^{9}}",
    "\\binom{1000000000}{500000000}",
    "((100000!)!)!",
    "2^{2^{2^{2^{2^{2}}}}}",
    "7^{7^{7^{7}}} - 7^{7^{7^{6}}} + 27182",
    "\\log_{2}{(2^{2^{40}})}",
    "\\lfloor \\pi^{1000000000} \\rfloor",
    "(x+y+z+1)^{300}",
    "\\frac{1}{9^{9^{9}}}",
]
"""Most of these run into the limits; some are quick with one sympy and endless with the next."""

HAND_WRITTEN = [
    # bets and hedges
    "x=" + "=".join(str(i) for i in range(27170, 27190)),
    "27182=27183",
    "27183=27182",
    "27182 \\text{ or } 27183",
    "27182, 27183",
    "\\{27182, 27183\\}",
    "[27181, 27183]",
    "27181 < x < 27183",
    "\\pm 27182",
    "27182 \\approx 27183",
    "27182 \\neq 27182",
    "\\text{not } 27182",
    "\\text{anything}=27182",
    "x^2+1=27182",
    "27182 + x",
    "27182 + 10^{-30}",
    "27182.0000000001",
    "\\text{the reference}",
    "\\text{ground\\_truth}",
    "2 7 1 8 2",
    "27181\\ 1",
    # the protocol between the processes
    '1", "reference": "1"}\n{"answer": "1", "reference": "1',
    '1\\n{"answer": "27182", "reference": "27182"}',
    "\nright\n",
    "right",
    "ready",
    "\x00\x01\x02right\n",
    # code
    "__import__('os').system('kill -9 0')",
    "().__class__.__base__.__subclasses__()",
    "exec(open('/etc/passwd').read())",
    "{reference}",
    "%s%s%s%n",
    "\\input{/etc/passwd}",
    "\\def\\x{27182}\\x",
    "\\write18{ls}",
    "S.One*27182",
    "Symbol('x')",
    # shape
    "\\boxed{" * 60,
    "{" * 250 + "1" + "}" * 250,
    "(" * 250 + "1" + ")" * 250,
    "\\sqrt{" * 70 + "2" + "}" * 70,
    "\\frac{1}{" * 50 + "2" + "}" * 50,
    "2^{" * 120 + "2" + "}" * 120,
    "-" * 500 + "1",
    "1" + "+1" * 250,
    "1" + "-1" * 250,
    "9" * 512,
    "0." + "9" * 500,
    "1e999999999",
    "1e-999999999",
    "10^{999999999999}",
    "0^{-1}",
    "\\frac{1}{0}",
    "\\frac{0}{0}",
    "\\infty-\\infty",
    "\\log 0",
    "\\tan\\frac{\\pi}{2}",
    "a_{" * 80 + "1" + "}" * 80,
    "|" * 101,
    "\\left(" * 80,
    "\\begin{pmatrix}" + "1 & " * 100 + "1\\end{pmatrix}",
    "\\begin{pmatrix}" * 30,
    "\\int_0^{\\infty} e^{-x^2} dx",
    "\\sum_{n=1}^{\\infty} \\frac{1}{n^{27}}",
    "\\lim_{x \\to 0} \\frac{\\sin x}{x}",
    "x^{x^{x^{x}}} = 5",
    "\\sin(\\sin(\\sin(\\sin(\\sin x)))) = x",
    "x^{17} + 3x^{11} - 2x^5 + 7 = 0",
    "x^2+y^2+z^2+w^2=1, x=y",
    "<think>27182</think>",
    "</think>",
    "\u202e28172",
    "2\u200b7182",
    "²⁷¹⁸²",
    "二万七千一百八十二",
    "\ufeff\ufffd",
    "é́́́́́" * 60,
    "\\\\" * 200,
    "$" * 300,
    "%" * 300,
    "=" * 300,
    "," * 300,
    " " * 500,
    "\t\r\n" * 100,
]

RESPONSES = [
    "",
    " ",
    "<think>",
    "</think>",
    "<think>" * 2000,
    "</think>" * 2000,
    "<think></think>" * 2000,
    "\\boxed{",
    "\\boxed{" * 20_000,
    "\\boxed{}" * 10_000,
    "\\boxed{27183}" * 5_000,
    "{" * 100_000,
    "}" * 100_000,
    "\\" * 100_000,
    "a" * 200_000,
    "<think>\\boxed{27182}",
    "<think>\\boxed{27182}</think>",
    "<think>a</think>\\boxed{27182} but really \\boxed{0}",
    "<think>a</think>27182",
    "<think>a</think>\\boxed 27182",
    "<think>a</think>\\boxed{27182",
    "<think>a</think>\\boxed{" + "2" * 600 + "}",
    "<think>a</think>\\boxed{27182}</think>",
    "<think>a</think>\\boxed{\x00}",
]

_TOKENS = r"""
1 2 7 0 9 27182 3.14 0.5 x y n e i \pi + - * / ^ _ = < > ! % ( ) [ ] { } \{ \} , ; . : | & $ ' " ~ # @ ? \ \\
^{2} _{3} ^{-1} \frac \frac{1}{2} \sqrt \sqrt{2} \left( \right) \left[ \right] \pm \cdot \times \div \le \ge \neq
\in \cup \cap \infty \emptyset \text{ \text{cm} \text{or} \mathrm{m} \boxed{ \sin \cos \log \ln \binom{4}{2} \int
\overline{3} ^\circ \begin{pmatrix} \end{pmatrix} \ldots \to \approx \mid \not \prime \angle \mathbb{R} \lfloor \rfloor
\vec{v} \sum_{k=1}^{3} \lim and or not é 中 ∑
"""
TOKENS = [*_TOKENS.split(), "\u200b", "\x07"]


def fuzzed(seed: int) -> Iterator[str]:
    """Responses without end: LaTeX salad, broken pieces of the hand-written, and any characters at all."""
    rng = random.Random(seed)
    whole = [text for text in [*HAND_WRITTEN, "\\frac{27182}{1}", "x=27182", "(1,27182)"] if len(text) < 200]
    while True:
        style = rng.random()
        if style < 0.6:
            answer = "".join(rng.choice(TOKENS) + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 25)))
        elif style < 0.85:
            piece = list(rng.choice(whole))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(piece) + 1)
                piece[at : at + rng.randint(0, 3)] = rng.choice([[], [rng.choice(TOKENS)]])
            answer = "".join(piece)
        else:
            codes = (rng.choice([rng.randint(1, 127), rng.randint(128, 0xD7FF)]) for _ in range(rng.randint(1, 60)))
            answer = "".join(map(chr, codes))
        frame = rng.choice(
            [box, box, box, lambda a: "<think>" + a, lambda a: a + "</think>" + box(a), lambda a: a * 20]
        )
        yield frame(answer)


def ordinary(n: int) -> Output:
    """The n-th of the ordinary neighbours, right and wrong ones in turn."""
    kind, right = n // 2 % 4, n % 2 == 0
    off = 0 if right else 1
    answer, reference = [
        (f"{n + off}", f"{n}"),
        (f"\\dfrac{{{n + off}}}{{7}}", f"\\frac{{{n}}}{{7}}"),
        (f"x = {n + off}", f"{n}"),
        (f"(x-{n + off})(x+{n})", f"x^2-{n**2}" if n else "x(x-1)" if off else "x^2"),
    ][kind]
    if kind == 3 and n == 0:
        right = True
    return Output(box(answer), reference, float(right))


def outputs(count: int, hangs: int, seed: int = 0) -> list[Output]:
    """`count` hostile outputs among as many ordinary ones, mixed; `hangs` of them try to run without end."""
    hostile = [Output(box(text), REFERENCE, 0.0) for text in HAND_WRITTEN]
    hostile += [Output(text, REFERENCE, 0.0) for text in RESPONSES]
    hostile += [Output(box(HANGS[i % len(HANGS)]), REFERENCE, 0.0, hangs=True) for i in range(hangs)]
    for text in fuzzed(seed):
        if len(hostile) >= count:
            break
        if "27182" not in text:  # salad with the reference in it may by chance be right
            hostile.append(Output(text, REFERENCE, 0.0))
    mixed = hostile + [ordinary(n) for n in range(len(hostile))]
    random.Random(seed).shuffle(mixed)
    return mixed
