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
