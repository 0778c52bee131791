# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face hub, in and out of reach."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Features, Json, Value
from made_up import ROWS, answers, converted, paper

from cw_grpo.datasets.benchmarks import benchmarks
from cw_grpo.datasets.hub import dataset_rows, load_tokenizer

ROOT = Path(__file__).parents[2]


def test_a_datasets_numbers() -> None:
    """Of a mixed json column `datasets` keeps binary floats, of float32 six digits."""
    features = Features(problem=Value("string"), answer=Json(), final_answer=Value("float32"))
    columns = {"problem": ["q", "r", "s"], "answer": ["x", 0.1 + 0.2, 0.5], "final_answer": [0.5, 0.1, None]}
    rows = dataset_rows(Dataset.from_dict(columns, features=features))
    result = converted(rows, answer_column="answer")
    assert answers(result) == ["x", "0.5"]
    assert result.skipped == {
        "the answer is stored as a float of more than 15 digits and may be rounded: store it as text": [1]
    }
    with pytest.raises(ValueError, match="skipped 1: no answer .row 2.; skipped 2: the answer is stored as float, whi"):
        converted(rows, answer_column="final_answer")


def test_without_a_network(tmp_path) -> None:
    # A closed port of this machine in the hub's place: the same on a machine with a network.
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    run = [
        sys.executable,
        "-c",
        "from cw_grpo.cli import app; app()",
        "data",
        "paper",
        "all",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    for benchmark in benchmarks().values():
        assert f"error: {benchmark.name}: could not load {benchmark.id} " in done.stderr
    assert "--from FILE" in done.stderr and "Traceback" not in done.stderr and "Retrying" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_size_mismatch_of_the_hub_is_an_error_unless_allowed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cw_grpo.datasets.paper.read_hub", lambda benchmark: ROWS[:39])
    rejected = paper("amc23", "--out", tmp_path)
    assert rejected.exit_code == 2 and "knoveleng/AMC-23 has 39 rows; the paper's amc23 has 40" in rejected.output
    assert not list(tmp_path.iterdir())
    assert paper("amc23", "--out", tmp_path, "--allow-size-mismatch").exit_code == 0
    assert (tmp_path / "amc23.parquet").is_file()


def test_a_directory_without_a_tokenizer(tmp_path) -> None:
    with pytest.raises(RuntimeError, match=f"--tokenizer {tmp_path}: "):
        load_tokenizer(str(tmp_path))
