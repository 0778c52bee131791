# SPDX-License-Identifier: Apache-2.0
"""Is this answer equal to this reference? The process in which `reward.py` asks.

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
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # last: no file here takes the place of a library

from reward_equality import readable, same
from reward_spelling import spell

REFERENCE_LIMIT = 2000
"""Longer references are taken for an error in the data."""

QUOTED = re.compile(
    r"(?:.*\n)*#### *(.+)|\['(.+)'\]|(?:the )?(?:final )?answer(?: is)?:? +(.+)|(.+?) \([a-z ]{3,}\)", re.I
)
"""References with something around them: GSM8K's solutions, a list of one text, `Answer: 5`, `5 (five)`."""

CHOICE = re.compile(
    r"(?:\\text\{(?:Option|Choice)\})?(?:\(([A-J])\)|([A-J])[).:]?|\(?([A-J])\)([\w\\($|](?!.*[A-J]\)).*))", re.I
)
NUMERAL = re.compile(r"\(?([0-9A-F]+)\)?_\{(\d+)\}")

WARM = r"\frac{2\pi R^{2}}{d(e^{h/T}-1)}+\sqrt[3]{x_1}\sin^{2}2t"
"""The parser learns its grammar from what it reads."""


def readings(text: str, reference: bool) -> list[str]:
    """A text spelled, where 2,500 is two numbers and where it is one; a choice as its letter and as what is chosen; the
    base of a reference may be left out. None if braces do not match.
    """
    quoted = reference and QUOTED.fullmatch(text)
    text = next(filter(None, quoted.groups())) if quoted else text
    try:
        found = [spell(text), spell(text, thousands=True)]
    except ValueError:
        return []
    if re.fullmatch(r"-?\d+,\d\d|-?0,\d+", text):  # a decimal comma
        found.append(spell(text.replace(",", ".")))
    if m := CHOICE.fullmatch(found[0]):
        letter, said = m[1] or m[2] or m[3], m[4]
        found += [said] if said else []
        found += [] if said and reference else [letter]
        found += [rf"\text{{choice {letter}}}"] if bool(said) == reference else []  # D for (D) 12, but not (D) 13
    if (m := NUMERAL.fullmatch(found[0])) and all(int(d, 16) < int(m[2]) for d in m[1]):
        found += [f"{m[1]}_{m[2]}", *[m[1]][: int(reference)]]
    return list(dict.fromkeys(found))


def is_right(answer: str, reference: str) -> bool:
    """Does the content of a box equal the reference?

    The accuracy part of the paper's reward (Appendix C: "1.0 for exact matches and 0.0 otherwise"). The same text is
    right whatever it is; otherwise one reading of the answer must equal one of the reference.
    """
    if answer.strip() == reference:
        return True
    return any(same(r, a) for r in readings(reference, reference=True) for a in readings(answer, reference=False))


def judge(request: dict) -> str:
    """`right`, `wrong` or `bad_reference`; without an answer, if the reference is `read` or `unread`. Never raises."""
    answer, reference = request["answer"], request["reference"].strip()
    if not 0 < len(reference) <= REFERENCE_LIMIT:
        return "bad_reference"
    try:
        if answer is None:
            return "read" if any(map(readable, readings(reference, reference=True))) else "unread"
        return "right" if is_right(answer, reference) else "wrong"
    except Exception:  # RecursionError, MemoryError, and whatever sympy raises on such text
        return "wrong" if answer is not None else "unread"


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
    judge({"answer": f"{WARM}+0", "reference": WARM})
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
