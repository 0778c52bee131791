# SPDX-License-Identifier: Apache-2.0
"""The paper's datasets, as benchmarks.yaml lists them."""

from __future__ import annotations

from cw_grpo.datasets import BENCHMARKS
from cw_grpo.datasets.benchmarks import benchmarks


def test_ids_and_sizes_are_those_of_table_4_and_appendix_a() -> None:
    assert {b.name: (b.id, b.size, b.split) for b in benchmarks().values()} == {
        "open-rs": ("knoveleng/open-rs", 7000, "train"),
        "aime24": ("HuggingFaceH4/aime_2024", 30, "test"),
        "amc23": ("knoveleng/AMC-23", 40, "test"),
        "math500": ("HuggingFaceH4/MATH-500", 500, "test"),
        "minerva": ("knoveleng/Minerva-Math", 272, "test"),
        "olympiadbench": ("knoveleng/OlympiadBench", 675, "test"),
    }
    assert tuple(benchmarks()) == BENCHMARKS
