# SPDX-License-Identifier: Apache-2.0
"""Hostile outputs among ordinary neighbours through verl's reward loop under Ray: `tests/test_reward_loop.py`, larger.

    python scripts/reward_stress.py [--outputs 3000] [--hangs 60] [--seed 0]

Prints the figures and ends with status 1 if one of them misses what the project asks for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=3000, help="hostile outputs; as many ordinary ones come to it")
    parser.add_argument("--hangs", type=int, default=60, help="how many of them try to run without end")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import ray
    import reward_hostile
    import test_reward_loop as loop

    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = loop.run(reward_hostile.outputs(args.outputs, args.hangs, args.seed), Path(folder))
    finally:
        ray.shutdown()
    print(loop.report(result))
    for name in loop.LISTS:
        for item in result[name][:5]:
            print(f"  {name}: {item!r}"[:300])
    sys.exit(0 if loop.good(result) else 1)


if __name__ == "__main__":
    main()
