# SPDX-License-Identifier: Apache-2.0
"""Benchmarks and scores with made-up numbers, as `cw-grpo data` and `cw-grpo eval` leave them."""

from __future__ import annotations

from pathlib import Path

from cw_grpo.datasets.rows import make_row, write_rows
from cw_grpo.evaluation import scores

CHAT = [{"role": "user", "content": "?"}]


def benchmark(path: Path, references: list[str]) -> Path:
    rows = [
        make_row(path.stem, CHAT, reference, index=index, split="test", question="?")
        for index, reference in enumerate(references)
    ]
    write_rows(rows, path)
    return path


def evaluation(method: str, step: int | None, name: str, accuracies: list[list[float]], **settings: object) -> dict:
    rows = [
        {"question": i, "acc": acc, "tokens": [1] * len(acc), "cut_off": [False] * len(acc)}
        for i, acc in enumerate(accuracies)
    ]
    mean = {"mean": 0.5, "low": 0.25, "high": 0.75}
    shares = dict.fromkeys(("mean_tokens", "cut_off", "format", "no_answer", "timeout", "bad_reference"), 0.0)
    return {
        **shares, "kind": scores.KIND, "method": method, "step": step, "benchmark": name, "benchmark_sha256": name,
        "samples": len(accuracies[0]), "pass@1": mean, "pass@K": mean, "questions": rows,
        "settings": {"temperature": 0.6, "max_tokens": 9, **settings},
    }  # fmt: skip


RIGHT, WRONG, HALF = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]
FOUND = [
    evaluation("cw_grpo", 50, "own", [RIGHT, HALF]),
    evaluation("cw_grpo", 100, "own", [RIGHT, RIGHT]),
    evaluation("cw_grpo", 100, "aime24", [RIGHT, HALF, HALF, WRONG]),
    evaluation("grpo", 100, "own", [HALF, HALF]),
    evaluation("grpo", 100, "aime24", [HALF, WRONG, WRONG, WRONG]),
    evaluation("base", None, "own", [WRONG, WRONG]),
]
