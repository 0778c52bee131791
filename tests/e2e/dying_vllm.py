# SPDX-License-Identifier: Apache-2.0
"""A module of verl (VERL_USE_EXTERNAL_MODULES) with which vLLM dies at the second time that it is sent weights."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

import wrapt


@wrapt.when_imported("verl.workers.rollout.vllm_rollout.utils")
def _die(module: Any) -> None:
    times = itertools.count(1)

    @wrapt.patch_function_wrapper(module, "vLLMColocateWorkerExtension.update_weights_from_ipc")
    def update(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> Any:
        if next(times) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return wrapped(*args, **kwargs)
