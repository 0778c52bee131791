# SPDX-License-Identifier: Apache-2.0
"""verl's schema, and files written whole or not at all."""

from __future__ import annotations

import pytest

from cw_grpo.datasets.rows import make_row, write_rows


def rows() -> list[dict]:
    chat = [{"role": "system", "content": "Answer in \\boxed{}."}, {"role": "user", "content": "?"}]
    return [make_row("sums", chat, str(i), index=i, split="train", question="?") for i in range(20)]


def test_rows_are_what_verl_reads(tmp_path) -> None:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from cw_grpo.job.small_models import character_tokenizer

    assert write_rows(rows(), tmp_path / "train.parquet") == 20
    config = OmegaConf.create({"max_prompt_length": 256, "cache_dir": str(tmp_path), "filter_overlong_prompts": False})
    dataset = RLHFDataset(str(tmp_path / "train.parquet"), tokenizer=character_tokenizer(), config=config)
    assert len(dataset) == 20
    row = dataset[7]
    assert row["data_source"] == "sums"
    assert row["reward_model"] == {"style": "rule", "ground_truth": "7"}
    assert row["raw_prompt"][0] == {"role": "system", "content": "Answer in \\boxed{}."}
    assert row["extra_info"]["index"] == 7 and row["extra_info"]["split"] == "train"


def test_a_failure_leaves_no_partial_file(tmp_path) -> None:
    out = tmp_path / "out" / "train.parquet"
    bad = rows()
    bad[5]["reward_model"]["ground_truth"] = object()
    with pytest.raises(Exception, match="object"):
        write_rows(bad, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(b"earlier")
    with pytest.raises(Exception, match="object"):
        write_rows(bad, out)
    assert out.read_bytes() == b"earlier" and len(list(out.parent.iterdir())) == 1
