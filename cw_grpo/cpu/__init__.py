# SPDX-License-Identifier: Apache-2.0
"""verl on a machine without an accelerator: opt-in, never imported by a GPU job.

Start verl with ``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=cw_grpo.cpu`` and compose ``cluster=cpu``. verl imports
this module at the end of its own ``__init__``, in every process, so importing it registers everything:

- the platform ``cpu`` (:mod:`cw_grpo.cpu.platform`);
- verl's own FSDP engines for the device ``cpu``;
- the rollout ``transformers`` (:mod:`cw_grpo.cpu.rollout`).

What lives in heavy modules of verl is registered when verl itself imports them.
"""

import logging
from types import SimpleNamespace
from typing import Any

import torch
import wrapt

from cw_grpo.cpu import platform as platform

ROLLOUT_NAME = "transformers"


@wrapt.when_imported("verl.workers.engine.fsdp.transformer_impl")
def _register_engines(module: Any) -> None:
    from verl.workers.engine.base import EngineRegistry

    for model_type, engine in (
        ("language_model", module.FSDPEngineWithLMHead),
        ("value_model", module.FSDPEngineWithValueHead),
    ):
        # FSDP1 insists on an accelerator (torch: "FSDP needs a non-CPU accelerator device").
        EngineRegistry.register(model_type=model_type, backend="fsdp2", device="cpu")(engine)

    # The engine of a reference policy offloads to pinned memory, which torch has only beside an accelerator.
    offload = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory: offload(pin_memory=False)


@wrapt.when_imported("verl.utils.distributed")
def _name_gloo_once(module: Any) -> None:
    # verl asks for "cpu:gloo,<device>:<backend>", here "cpu:gloo,cpu:gloo", which torch refuses as a duplicate.
    @wrapt.patch_function_wrapper(module, "initialize_global_process_group_ray")
    def with_backend(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> None:
        def call(timeout_second: int | None = None, backend: str | None = None) -> None:
            return wrapped(timeout_second, backend or "cpu:gloo")

        return call(*args, **kwargs)


@wrapt.when_imported("verl.trainer.ppo.v1.replay_buffer")
def _poll_often(module: Any) -> None:
    # verl looks for finished responses every 2 s, and no setting changes that; a step of a small model takes less.
    @wrapt.patch_function_wrapper(module, "ReplayBuffer.__init__")
    def with_interval(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> None:
        wrapped(*args, **{"poll_interval": 0.05, **kwargs})


@wrapt.when_imported("verl.experimental.agent_loop.agent_loop")
def _make_agent_loops_directly(module: Any) -> None:
    # verl makes one with hydra for each response, which takes longer than a small model takes to answer. The name in
    # that module is replaced: hydra stays as it is for everybody else.
    utils = module.hydra.utils

    def instantiate(config: Any, **kwargs: Any) -> Any:
        if set(config) == {"_target_"}:
            return utils.get_object(config["_target_"])(**kwargs)
        return utils.instantiate(config, **kwargs)

    module.hydra = SimpleNamespace(utils=SimpleNamespace(instantiate=instantiate))


@wrapt.when_imported("verl.utils.tokenizer.continuous_token_wiring")
def _warn_once(module: Any) -> None:
    # verl says of an unknown family of models, for each response, how it joins tokens: most lines of a log.
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in said
        said.add(record.getMessage())
        return not known

    module.logger.addFilter(is_new)


@wrapt.when_imported("vllm.model_executor.layers.utils")
def _keep_weights_in_vllm(module: Any) -> None:
    # vLLM packs a linear layer's weight for the CPU and drops it, after which verl could not load the trainer's. For
    # dense models: it also packs the experts of a mixture, elsewhere.
    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = keep


@wrapt.when_imported("verl.workers.rollout.base")
def _register_rollout_adapter(module: Any) -> None:
    module._ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = "cw_grpo.cpu.rollout.TransformersAdapter"


@wrapt.when_imported("verl.workers.rollout.replica")
def _register_rollout_replica(module: Any) -> None:
    def load() -> type:
        from cw_grpo.cpu.rollout import TransformersReplica

        return TransformersReplica

    module.RolloutReplicaRegistry.register(ROLLOUT_NAME, load)
