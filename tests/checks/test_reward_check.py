# SPDX-License-Identifier: Apache-2.0
"""A reward function that checks itself before the job starts."""

from __future__ import annotations

import pytest
from test_reward_loop import byte_tokenizer, job_config

from cw_grpo.checks.reward import check_reward


def test_a_job_is_checked_before_it_starts(tmp_path) -> None:
    path = byte_tokenizer(tmp_path / "tokenizer")
    check_reward(job_config(path, format_weight=0))
    with pytest.raises(ValueError, match="unknown"):
        check_reward(job_config(path, wieght=0))
