"""Scores per second of `recipe/cw_grpo/reward.py` against math-verify called plainly in one process.

Ordinary answers: each reference in a box, right, and the next reference in a box, wrong.

    python scripts/bench_reward.py [--data FOLDER] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipe" / "cw_grpo"))


def ordinary(folder: Path) -> list[tuple[str, str]]:
    import pandas

    golds = [str(a) for file in sorted(folder.glob("*.parquet")) for a in pandas.read_parquet(file)["answer"]]
    following = golds[1:] + golds[:1]
    pairs = [pair for gold, nxt in zip(golds, following, strict=True) for pair in ((gold, gold), (nxt, gold))]
    return [(f"<think>Let me think.</think>\nThe answer is $\\boxed{{{answer}}}$.", gold) for answer, gold in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=8, help="threads that call the reward, as verl's executor does")
    args = parser.parse_args()

    import reward
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    pairs = ordinary(args.data)
    reward.compute_score("math", *pairs[0])
    print(f"{len(pairs)} ordinary answers, {args.rounds} rounds, {reward.Settings().processes} comparing processes")
    ratios = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        plain = sum(verify(parse(f"${gold}$"), parse(response)) for response, gold in pairs)
        plain_rate = len(pairs) / (time.perf_counter() - started)
        with ThreadPoolExecutor(args.threads) as threads:
            started = time.perf_counter()
            right = sum(threads.map(lambda pair: reward.compute_score("math", *pair)["acc"], pairs))
            rate = len(pairs) / (time.perf_counter() - started)
        ratios.append(rate / plain_rate)
        print(f"plain {plain_rate:.0f}/s ({plain} right), reward {rate:.0f}/s ({right:.0f} right): {ratios[-1]:.2f} x")
    print(f"median {sorted(ratios)[len(ratios) // 2]:.2f} x")


if __name__ == "__main__":
    main()
