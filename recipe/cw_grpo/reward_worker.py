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
import signal
import sys
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # last: no file here takes the place of a library

from reward_equality import TESTS, same
from reward_spelling import spell

REFERENCE_LIMIT = 2000  # longer ones are taken for an error in the data
CHOICE = re.compile(
    r"(?:\\text\{(?:Option|Choice)\})?(?:\(([A-J])\)|([A-J])[).:]?|\(?([A-J])\)([\w\\($|](?!.*[A-J]\)).*))", re.I
)
WARM = r"\frac{2\pi R^{2}}{d(e^{h/T}-1)}+\sqrt[3]{x_1}\sin^{2}2t"  # the parser learns its grammar from what it reads


def readings(text: str, reference: bool) -> list[str]:
    """A text spelled, where 2,500 is two numbers and where it is one; a choice as its letter and as what is chosen.
    None if braces do not match.
    """
    try:
        found = [spell(text), spell(text, thousands=True)]
    except ValueError:
        return []
    if re.fullmatch(r"-?\d+,\d\d|-?0,\d+", text):  # a decimal comma
        found.append(spell(text.replace(",", ".")))
    if m := CHOICE.fullmatch(found[0]):
        parts = [part for part in m.groups() if part]
        found += parts[-1:] if reference else parts
    return list(dict.fromkeys(found))


def judge(request: dict) -> str:
    """`right`, `wrong` or `bad_reference`; without an answer, if the reference is `read` or `unread`. Never raises.

    The same text is right whatever it is; otherwise one reading of the answer must equal one of the reference. This
    is the accuracy part of the paper's reward (Appendix C: "1.0 for exact matches and 0.0 otherwise").
    """
    answer, reference = request["answer"], request["reference"].strip()
    if not 0 < len(reference) <= REFERENCE_LIMIT:
        return "bad_reference"
    try:
        if answer is None:  # can anything but the same text be equal?
            read = any(r[:5] == r"\text" or test(r, r) for r in readings(reference, True) for test in TESTS)
            return "read" if read else "unread"
        pairs = product(readings(reference, True), readings(answer, False))
        return "right" if answer.strip() == reference or any(same(*pair) for pair in pairs) else "wrong"
    except Exception:  # RecursionError, MemoryError, and whatever sympy raises on such text
        return "unread" if answer is None else "wrong"


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
    parent = os.getppid()  # a fork of it can keep our input open after its death
    signal.signal(signal.SIGALRM, lambda *_: None if os.getppid() == parent else os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, 5, 5)
    judge({"answer": f"{WARM}+0", "reference": WARM})
    gc.freeze()  # what was imported never becomes garbage
    print("ready", file=out, flush=True)
    for line in sys.stdin.buffer:  # the next request comes only after our answer
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(judge(json.loads(line)), file=out, flush=True)


if __name__ == "__main__":
    main()
