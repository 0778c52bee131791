# SPDX-License-Identifier: Apache-2.0
"""A reward function that checks itself before the job starts."""

from __future__ import annotations

import pytest
from omegaconf import open_dict
from test_reward_loop import byte_tokenizer, job_config

from cw_grpo.checks.reward import check_reward


def asked(config):
    with open_dict(config):
        config.check_reward = True
    return config


def test_a_job_is_checked_before_it_starts(tmp_path) -> None:
    path = byte_tokenizer(tmp_path / "tokenizer")
    check_reward(asked(job_config(path, format_weight=0)))
    with pytest.raises(ValueError, match="unknown"):
        check_reward(asked(job_config(path, wieght=0)))


def test_a_job_that_does_not_ask_has_nothing_imported(tmp_path) -> None:
    module = tmp_path / "reward.py"
    module.write_text("def check_start(**settings): raise ValueError('called')\nraise SystemExit('imported')\n")
    config = job_config(tmp_path)
    config.reward.custom_reward_function.path = str(module)
    check_reward(config)
    with pytest.raises(SystemExit, match="imported"):
        check_reward(asked(config))


def test_a_module_without_a_check_passes(tmp_path) -> None:
    module = tmp_path / "reward.py"
    module.write_text("def compute_score(**_): return 0.0\n")
    config = asked(job_config(tmp_path))
    config.reward.custom_reward_function.path = str(module)
    assert check_reward(config) is None
