# SPDX-License-Identifier: Apache-2.0
"""Scores per second of `recipe/cw_grpo/reward.py` against math-verify called plainly in one process.

Ordinary answers: each reference in a box, right, and the next reference in a box, wrong.

    python scripts/bench_reward.py [--rounds N] [--sentences N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipe" / "cw_grpo"))


SENTENCE = "Let $x_1 = \\frac{a}{b}$, so that $2x_1 + 3 = 7$ gives the next value; I check it once more. "


def ordinary(turn: int, sentences: int) -> list[tuple[str, str]]:
    """Responses and references of the benchmarks; each turn has other digits, so that no cache knows the answers."""
    digits = str.maketrans("123456789", "".join(str((d + turn) % 9 + 1) for d in range(9)))
    answers = json.loads((ROOT / "tests" / "data" / "benchmark_answers.json").read_text("utf-8"))
    golds = [gold.translate(digits) for name in sorted(answers) for gold in answers[name]]
    following = golds[1:] + golds[:1]
    pairs = [pair for gold, nxt in zip(golds, following, strict=True) for pair in ((gold, gold), (nxt, gold))]
    thinking = f"<think>{SENTENCE * sentences}</think>\nThe answer is"
    return [(f"{thinking} $\\boxed{{{answer}}}$.", gold) for answer, gold in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="up to 7")
    parser.add_argument("--sentences", type=int, default=1, help="of thinking, 85 characters each, before the answer")
    parser.add_argument("--threads", type=int, default=8, help="threads that call the reward, as verl's executor does")
    args = parser.parse_args()

    import reward
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def plain(some: list[tuple[str, str]]) -> int:
        return sum(verify(parse(f"${gold}$"), parse(response)) for response, gold in some)

    def scored(some: list[tuple[str, str]]) -> int:
        with ThreadPoolExecutor(args.threads) as threads:
            return int(sum(threads.map(lambda pair: reward.compute_score("math", *pair)["acc"], some)))

    print(f"{args.rounds} rounds, {reward.Settings().processes} comparing processes")
    for turn in (0, 1):  # the parser learns its grammar from what it sees
        plain(ordinary(turn, args.sentences))
        scored(ordinary(turn, args.sentences))
    ratios = []
    for turn in range(2, 2 + args.rounds):
        pairs, rates = ordinary(turn, args.sentences), []
        for score in (plain, scored):
            started = time.perf_counter()
            right = score(pairs)
            rates.append(len(pairs) / (time.perf_counter() - started))
            print(f"{score.__name__} {rates[-1]:.0f}/s ({right} of {len(pairs)} right)", end=", ")
        ratios.append(rates[1] / rates[0])
        print(f"{ratios[-1]:.2f} x")
    print(f"median {sorted(ratios)[len(ratios) // 2]:.2f} x")


if __name__ == "__main__":
    main()
