# SPDX-License-Identifier: Apache-2.0
"""`cw-grpo data paper`: files in, files out, what is there and what is not."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from made_up import ROWS, paper, write

from cw_grpo.datasets import BENCHMARKS
from cw_grpo.datasets.rows import SCHEMA


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv"])
def test_each_format_gives_the_same_bytes_and_so_does_a_second_run(tmp_path, suffix: str) -> None:
    file = write(tmp_path / f"in{suffix}", ROWS)
    reference = tmp_path / "reference.parquet"
    assert paper("amc23", "--from", write(tmp_path / "r.parquet", ROWS), "--out", reference).exit_code == 0
    for _ in range(2):
        done = paper("amc23", "--from", file, "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        assert "amc23: 40 of 40 questions in" in done.output and "WARNING" not in done.output
        assert "prompt lengths are not checked" in done.output
        assert (tmp_path / "out" / "amc23.parquet").read_bytes() == reference.read_bytes()
    table = pq.read_table(reference)
    assert table.schema.equals(SCHEMA)
    row = table.slice(7, 1).to_pylist()[0]
    assert row["data_source"] == "amc23" and row["reward_model"] == {"style": "rule", "ground_truth": "8"}
    assert row["extra_info"] == {"index": 7, "split": "test", "question": "What is 7 + 1?", "values": "{}"}
    assert [m["role"] for m in row["prompt"]] == ["system", "user"]


def test_all_makes_what_is_there_and_lists_what_is_not(tmp_path) -> None:
    sizes = {"aime24": 30, "amc23": 40}
    for name, size in sizes.items():
        write(tmp_path / f"{name}.parquet", [{"problem": f" {name} {i}?", "answer": i} for i in range(size)])
    done = paper("all", "--from", tmp_path, env={"CW_GRPO_HOME": str(tmp_path / "home")})
    assert done.exit_code == 2
    for name in BENCHMARKS:
        file = tmp_path / "home" / "data" / f"{name}.parquet"
        assert file.is_file() == (name in sizes)
        if name in sizes:
            assert f"{name}: {sizes[name]} of {sizes[name]} questions" in done.output
            rows = pq.read_table(file).to_pylist()
            assert [r["extra_info"]["question"] for r in rows] == [f"{name} {i}?" for i in range(sizes[name])]
            assert [r["reward_model"]["ground_truth"] for r in rows] == [str(i) for i in range(sizes[name])]
        else:
            assert f"must have one of {name}.parquet, {name}.json" in done.output


def test_names(tmp_path) -> None:
    for name in ("aime24", "amc23"):
        write(tmp_path / f"{name}.csv", ROWS)
    assert paper("aime24", "amc23", "aime24", "--from", tmp_path, "--out", tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["aime24.parquet", "amc23.parquet"]
    for names in (["aime25"], ["all", "aime25"]):
        done = paper(*names, "--from", tmp_path, "--out", tmp_path / "none")
        assert done.exit_code == 2
        assert "error: unknown benchmark aime25; known are open-rs, aime24, amc23" in done.output


def test_what_is_not_there_and_what_would_be_overwritten(tmp_path) -> None:
    file = write(tmp_path / "amc23.parquet", ROWS)
    before = file.read_bytes()
    for arguments, message in (
        (("amc23", "--from", tmp_path / "no.csv"), "no such file or directory"),
        (("all", "--from", file), "several benchmarks need a directory"),
        (("all", "--from", tmp_path, "--out", "x.parquet"), "several benchmarks need a directory"),
        (("amc23", "--from", file, "--out", tmp_path), "is the file that is read"),
    ):
        done = paper(*arguments)
        assert done.exit_code == 2 and message in done.output, done.output
    write(tmp_path / "amc23.csv", ROWS)
    assert "it has amc23.parquet and amc23.csv" in paper("amc23", "--from", tmp_path, "--out", "y").output
    assert file.read_bytes() == before


@pytest.mark.parametrize(("out", "message"), [("file/out", "Not a directory: "), ("taken.parquet", "Is a directory: ")])
def test_an_out_path_that_cannot_be_written(tmp_path, out: str, message: str) -> None:
    source = write(tmp_path / "amc23.csv", ROWS)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken.parquet").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = paper("amc23", "--from", source, "--out", tmp_path / out)
    assert done.exit_code == 2 and message in done.output.splitlines()[-1] and str(tmp_path) in done.output
    assert sorted(tmp_path.rglob("*")) == before
