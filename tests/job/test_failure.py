# SPDX-License-Identifier: Apache-2.0
"""Errors in a log."""

from __future__ import annotations

from cw_grpo.job.failure import error_lines


def test_errors_are_picked_from_a_log_of_ray() -> None:
    log = (
        "INFO fine\nError executing job with overrides: ['a=1']\n"
        "\x1b[36m(WorkerDict pid=7)\x1b[0m Traceback (most recent call last):\n"
        "\x1b[36m(WorkerDict pid=7)\x1b[0m ValueError: first\nValueError: first\n"
        "ray.exceptions.RayTaskError(ValueError): ray::run() (pid=7)\nsome Error in prose\n"
        "torch.OutOfMemoryError: last\n"
    )
    assert error_lines(log) == [
        "ValueError: first",
        "ray.exceptions.RayTaskError(ValueError): ray::run() (pid=7)",
        "torch.OutOfMemoryError: last",
    ]


def test_the_cause_is_found_behind_vllms_own_prefixes() -> None:
    """As vLLM 0.24 logs from its engine's process, in a Ray actor."""
    log = (
        "(vLLMHttpServer pid=9) (EngineCore pid=12) ERROR 11-27 01:02:03 [core.py:1231] Traceback (most recent ...\n"
        "(vLLMHttpServer pid=9) (EngineCore pid=12) ERROR 11-27 01:02:03 [core.py:1231] ValueError: no memory left\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
        "CRITICAL 11-27 01:02:04 [launcher.py:7] the server ends\n"
    )
    assert error_lines(log) == [
        "ValueError: no memory left",
        "CRITICAL 11-27 01:02:04 [launcher.py:7] the server ends",
    ]


def test_a_setting_that_vllm_does_not_know_is_the_cause() -> None:
    """As vLLM 0.27 ended under verl with `rollout.dtype=float33`."""
    said = "argument --dtype: invalid choice: 'float33' (choose from 'auto', 'bfloat16')"
    log = (
        "\x1b[36m(vLLMHttpServer pid=28880)\x1b[0m usage: vllm serve [model_tag] [options]\n"
        f"\x1b[36m(vLLMHttpServer pid=28880)\x1b[0m default_worker.py serve: error: {said}\n"
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
    )
    assert error_lines(log) == [
        f"default_worker.py serve: error: {said}",
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    ]
