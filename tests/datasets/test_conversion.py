# SPDX-License-Identifier: Apache-2.0
"""Rows in verl's schema from a benchmark's own, and the report on them."""

from __future__ import annotations

import pyarrow.parquet as pq
from made_up import ROWS, answers, converted, paper, write


def test_the_last_box_of_a_solution_is_the_answer() -> None:
    result = converted(
        [
            {"problem": "a", "solution": "First \\boxed{1}, then \\boxed{\\frac{1}{2}}."},
            {"problem": "b", "solution": "It is 3."},
        ]
    )
    assert answers(result) == ["\\frac{1}{2}"]
    assert result.skipped == {"no \\boxed{} in the solution": [1]}


def test_skipped_rows_are_counted_and_listed(tmp_path) -> None:
    rows = [dict(row) for row in ROWS]
    for i in (3, 5, 6, 7, 8, 9, 20):
        rows[i]["answer"] = None
    rows[4]["problem"] = " "
    rows[11]["problem"] = rows[10]["problem"]
    rows[12]["answer"] = "9" * 100_000
    file = write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.parquet"
    done = paper("amc23", "--from", file, "--out", out)
    assert done.exit_code == 0, done.output
    assert "amc23: 31 of 40 questions in" in done.output
    assert "skipped 7: no answer (row 3, 5, 6, 7, 8 and 2 more)" in done.output
    assert "skipped 1: no question (row 4)" in done.output
    assert "skipped 1: the answer is longer than the 512 characters that the reward reads (row 12)" in done.output
    assert "kept 1: the same question as an earlier row (row 11 as 10)" in done.output
    assert [e["index"] for e in pq.read_table(out)["extra_info"].to_pylist()][:6] == [0, 1, 2, 10, 11, 13]

    strict = paper("amc23", "--from", file, "--out", tmp_path / "strict.parquet", "--strict")
    assert strict.exit_code == 2 and "skipped 7: no answer" in strict.output and "--strict" in strict.output
    assert not (tmp_path / "strict.parquet").exists()


def test_size_mismatch_of_a_file_is_a_warning(tmp_path) -> None:
    done = paper("amc23", "--from", write(tmp_path / "in.csv", ROWS[:39]), "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "in.csv has 39 rows; the paper's amc23 has 40" in done.output and "WARNING" in done.output


def test_long_prompts_are_skipped_as_verl_filters_them(tmp_path) -> None:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from cw_grpo.job.small_models import character_tokenizer

    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    wording = tmp_path / "prompt.yaml"
    wording.write_text('- {role: user, content: "{{ question }}"}\n')
    rows = [{"problem": "x" * n, "answer": "1"} for n in range(1, 41)] + [{"problem": "y" * 1_000_000, "answer": "1"}]
    file = write(tmp_path / "in.jsonl", rows)
    options = ("--from", file, "--prompt", wording, "--out")
    everything = paper("amc23", *options, tmp_path / "everything.parquet")
    assert everything.exit_code == 0, everything.output
    checked = ("--tokenizer", tmp_path / "tokenizer", "--max-prompt-length", 30)
    done = paper("amc23", *options, tmp_path / "short.parquet", *checked)
    assert done.exit_code == 0, done.output
    assert ": the prompt has more than 30 tokens (row" in done.output and "not checked" not in done.output

    config = OmegaConf.create({"max_prompt_length": 30, "cache_dir": str(tmp_path), "filter_overlong_prompts": True})
    config.filter_overlong_prompts_workers = 1
    verls = RLHFDataset(str(tmp_path / "everything.parquet"), tokenizer=tokenizer, config=config)
    kept = [e["index"] for e in pq.read_table(tmp_path / "short.parquet")["extra_info"].to_pylist()]
    assert kept == [e["index"] for e in verls.dataframe["extra_info"]] and 0 < len(kept) < 40
