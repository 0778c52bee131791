# SPDX-License-Identifier: Apache-2.0
"""What a job needs from this machine: GPUs that torch can use, CPUs for Ray, packages that import, room on the disk."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cw_grpo.checks.layout import fsdp_ulysses
from cw_grpo.job.footprint import (
    GpuMemory,
    ModelSize,
    checkpoint_bytes,
    checkpoints_at_once,
    gpu_memory,
    uncounted,
)
from cw_grpo.job.plan import Plan, environment
from cw_grpo.job.probe import ProbeError, probe
from cw_grpo.settings import bypasses_old_log_probs, is_v1

GB = 1e9
_SERVERS = "actor_rollout_ref.rollout"
_STORAGE_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
_PROBE = """
import json, os, torch
visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
found = []
for i in range(torch.cuda.device_count()):
    torch.zeros(1, device=f"cuda:{i}")
    free, total = torch.cuda.mem_get_info(i)
    visible_id = visible[i] if any(visible) else str(i)
    found.append({"name": torch.cuda.get_device_name(i), "id": visible_id, "free": free, "total": total})
print(json.dumps(found))
"""
# vLLM itself only warns if its extensions cannot be loaded. Their names differ between versions. Its build for CPUs has
# one for each kind of processor, and can load only one.
_VLLM = """
import importlib, pathlib, torch, vllm
paths = sorted(pathlib.Path(vllm.__file__).parent.glob("_C*.so"))
if any("AVX" in path.name for path in paths):
    from vllm.platforms import current_platform
    current_platform.import_kernels()
    if not hasattr(torch.ops._C, "rms_norm"):
        importlib.import_module("vllm._C")  # for its error
else:
    for path in paths:
        importlib.import_module("vllm." + path.name.partition(".")[0])
"""
_FLASH_ATTN = """
from flash_attn import flash_attn_varlen_func
from flash_attn.ops.triton.cross_entropy import cross_entropy_loss
"""
_ROLLOUTS = {"vllm": 'pip install ".[vllm]"', "sglang": 'pip install "verl[sglang]"'}
"""The packages of rollouts, and what installs them."""
FLASH_ATTN_HOWTO = 'pip install --no-build-isolation "verl[fsdp]", after torch (docs/gpus.md)'


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use, and its memory in bytes."""

    name: str
    id: str
    """In CUDA_VISIBLE_DEVICES."""
    free: int
    total: int


def import_error(code: str, env: Mapping[str, str]) -> str | None:
    """The last line of the error of Python code; None if it succeeds."""
    try:
        probe(code, env=env)
    except ProbeError as error:
        return str(error)
    return None


def find_gpus(config: DictConfig) -> list[Gpu]:
    """The GPUs that the job sees on this machine, in the order in which Ray hands them out.

    Looked for once: the probe takes seconds to import torch.

    Raises:
        ProbeError: torch cannot use them.
    """
    return _find_gpus(frozenset(environment(config).items()))


@functools.cache
def _find_gpus(env: frozenset[tuple[str, str]]) -> list[Gpu]:
    return [Gpu(**gpu) for gpu in json.loads(probe(_PROBE, env=dict(env)))]


def gpu_pools(config: DictConfig) -> dict[str, int]:
    """The GPUs of each of the job's pools that share none, by the node of its settings; the trainer's is the first."""
    separate = is_v1(config) and OmegaConf.select(config, "trainer.v1.trainer_mode") == "separate_async"
    pools = {
        "trainer": True,
        _SERVERS: separate,
        "reward.reward_model": OmegaConf.select(config, "reward.reward_model.enable_resource_pool"),
        "distillation": OmegaConf.select(config, "distillation.enabled"),
    }
    gpus = {}
    for node, taken in pools.items():
        if taken:
            nodes, per_node = (OmegaConf.select(config, f"{node}.{key}") or 0 for key in ("nnodes", "n_gpus_per_node"))
            gpus[node] = nodes * per_node
    return gpus


def missing_gpus(config: DictConfig) -> str | None:
    """Whether this machine has fewer GPUs that torch can use than the job asks for."""
    device, of_trainer = (OmegaConf.select(config, f"trainer.{key}") for key in ("device", "n_gpus_per_node"))
    if device != "cuda" or of_trainer is None:
        return None
    others = {node: gpus for node, gpus in gpu_pools(config).items() if node != "trainer"}
    import torch

    try:
        found = len(find_gpus(config))
    except ProbeError as error:
        return (
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPUs here: {error}. Install a "
            "driver for that CUDA, or a torch for the driver's (nvidia-smi shows it)"
        )
    if found >= of_trainer + sum(others.values()):
        return None
    why = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
    if (visible := environment(config).get("CUDA_VISIBLE_DEVICES")) is not None:
        why += f" (CUDA_VISIBLE_DEVICES={visible})"
    more = "".join(f" and {gpus} of {node} (nnodes x n_gpus_per_node)" for node, gpus in others.items())
    return (
        f"trainer.n_gpus_per_node={of_trainer}{more}, but torch sees {found} GPUs here{why}. Lower it, or use "
        "cluster=cpu with scale=smollm2 or scale=tiny on a machine without GPUs"
    )


def needed_cpus(config: DictConfig) -> int:
    """The CPUs that verl has Ray reserve, and one to place its other actors.

    3 for each GPU (``ResourcePoolManager.max_colocate_count``), 2 for each GPU of separate rollout servers, and, for
    the V1 trainer, one for each of TransferQueue's storage units and one for its controller.
    """
    needed = 1 + sum((2 if node == _SERVERS else 3) * gpus for node, gpus in gpu_pools(config).items())
    if is_v1(config):
        needed += 1 + (OmegaConf.select(config, _STORAGE_UNITS) or 0)
    return needed


def missing_cpus(config: DictConfig) -> str | None:
    """Whether Ray has fewer CPUs here than verl reserves; it would wait in silence."""
    if None in (OmegaConf.select(config, f"trainer.{key}") for key in ("nnodes", "n_gpus_per_node")):
        return None
    from ray._private.utils import get_num_cpus  # what ray.init takes, a container's limit included

    declared = OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus")
    found, needed = declared or int(get_num_cpus(override_docker_cpu_warning=True)), needed_cpus(config)
    if found >= needed:
        return None
    whose = "ray_kwargs.ray_init.num_cpus is" if declared else "Ray counts"
    return (
        f"verl reserves {needed} CPUs for this job (3 per GPU, 2 per GPU of separate rollout servers, 1 per storage "
        f"unit), but {whose} {found}. Fewer storage units need fewer ({_STORAGE_UNITS}=1); "
        f"ray_kwargs.ray_init.num_cpus={needed} declares more than there are"
    )


def missing_rollout(config: DictConfig) -> str | None:
    """Whether the package of the job's rollout is not installed in this Python, or cannot be imported."""
    name = OmegaConf.select(config, "actor_rollout_ref.rollout.name")
    if name not in _ROLLOUTS:
        return None
    howto = f"{_ROLLOUTS[name]} brings one for its torch"
    if name == "vllm" and OmegaConf.select(config, "trainer.device") == "cpu":
        howto = "in a checkout, bash scripts/setup.sh vllm makes .venv-vllm, whose cw-grpo has it"
    if find_spec(name) is None:
        return f"actor_rollout_ref.rollout.name={name}, but {name} is not installed in this Python: {howto}"
    if name == "vllm" and (error := import_error(_VLLM, environment(config))):
        return f"vllm is installed but does not load ({error}): {howto}"
    return None


def missing_packages(config: DictConfig) -> Iterator[str]:
    """The packages of the job's engine or rollout that are not installed in this Python, or cannot be imported."""

    def setting(key: str) -> object:
        return OmegaConf.select(config, f"actor_rollout_ref.{key}")

    strategy, env = setting("actor.strategy"), environment(config)
    if problem := missing_rollout(config):
        yield problem
    if strategy == "megatron" and find_spec("megatron") is None:
        yield 'model_engine=megatron, but Megatron is not installed here: pip install "verl[megatron]"'
    attention, packed = setting("model.override_config.attn_implementation"), setting("model.use_remove_padding")
    # verl's FSDP takes flash_attention_2 unless told otherwise. transformers would also take the package `kernels`, but
    # not verl's cross entropy, which then does not work in place: the logits would need more memory than computed.
    if str(strategy).startswith("fsdp") and packed and attention is None:
        instead = "attention=sdpa parallel.ulysses=1" if fsdp_ulysses(config) > 1 else "attention=sdpa"
        if find_spec("flash_attn") is None:
            yield (
                f"FSDP on packed sequences needs flash-attn, which is not installed here: {FLASH_ATTN_HOWTO}; or set "
                f"{instead}"
            )
        elif error := import_error(_FLASH_ATTN, env):
            yield (
                f"flash-attn is installed but does not load ({error}): build it for this torch, {FLASH_ATTN_HOWTO}; or "
                f"set {instead}"
            )


def lacks_optional_flash_attn(plan: Plan) -> bool:
    """Whether flash-attn is not installed and the job can do without it; what the user set for it stays."""
    optional = plan.launcher.flash_attn_optional and "attention" in plan.choices
    return optional and not plan.sets("attention") and find_spec("flash_attn") is None


def unwritable(config: DictConfig) -> Iterator[str]:
    """The directories that the job would write to and cannot."""
    keys = ("algorithm.cw_grpo.record", "trainer.rollout_data_dir", "trainer.validation_data_dir")
    for key in (*keys, "trainer.default_local_dir"):
        value = OmegaConf.select(config, key)
        if not isinstance(value, str) or "://" in value or value.startswith("~"):
            continue
        existing = _existing(Path(value))
        try:
            with tempfile.TemporaryDirectory(dir=existing):
                pass
        except OSError as error:
            yield f"{key}={value} cannot be written: {existing}: {error.strerror}"


def missing_disk(config: DictConfig, size: ModelSize, checkpoints: Path, step: int = 0) -> str | None:
    """Whether the disk of ``checkpoints`` has too little room for the job's checkpoints.

    Args:
        config: the job's.
        size: its model's.
        checkpoints: where they go.
        step: of the checkpoint from which the job resumes; 0 if there is none.
    """
    one, number = checkpoint_bytes(size.parameters, config), checkpoints_at_once(config, step)
    existing = _existing(checkpoints)
    free = shutil.disk_usage(existing).free
    if number * one <= free:
        return None
    earlier = f" beside that of step {step}, which stays until you remove it" if step else ""
    return (
        f"a checkpoint has {one / GB:.0f} GB, and {number} lie on the disk at once (the old one goes after the new one "
        f"is written){earlier}, but {existing} has {free / GB:.0f} GB free. Choose a --run-dir on a larger disk, or "
        "save none with trainer.save_freq=-1"
    )


def memory_problems(config: DictConfig, memory: GpuMemory, gpus: list[Gpu]) -> Iterator[str]:
    """What of a job cannot fit into the memory of the GPUs that it takes, whatever the length of the responses."""
    gpu = min(gpus_taken(config, gpus), key=lambda each: each.total)
    if memory.state > gpu.total:
        yield (
            f"parameters, gradients and Adam alone need {memory.state / GB:.0f} GB per GPU in an update, whatever is "
            f"offloaded between updates, and {gpu.name} has {gpu.total / GB:.0f}: shard them over more GPUs, use a "
            "smaller model, or keep them in the CPU's memory (FSDP2 with actor_rollout_ref.actor.fsdp_config."
            "offload_policy=true)"
        )
        return
    utilization = config.actor_rollout_ref.rollout.gpu_memory_utilization
    if (missing := memory.rollout(utilization, gpu.total) - gpu.total) > 0:
        resting = sum(memory.resting.values())
        room = math.floor((gpu.total - resting) / gpu.total * 100) / 100
        enough = {key: value for key, value in memory.resting.items() if value >= missing}
        offloads = (f", or set {key}=true ({value / GB:.0f} GB less)" for key, value in enough.items())
        yield (
            f"the trainer keeps {resting / GB:.0f} GB beside the rollout's {utilization * gpu.total / GB:.0f} of "
            f"{gpu.name}'s {gpu.total / GB:.0f}: set actor_rollout_ref.rollout.gpu_memory_utilization to {room:.2f} or "
            f"less{''.join(offloads)}"
        )


def busy_gpus(config: DictConfig, memory: GpuMemory | None, gpus: list[Gpu]) -> str | None:
    """Whether GPUs that the job takes lack the room that it needs, because others hold it.

    Args:
        config: the job's.
        memory: what it needs; None if that is not known, but for the rollout.
        gpus: those of this machine.
    """
    wanted = config.trainer.n_gpus_per_node
    utilization = config.actor_rollout_ref.rollout.gpu_memory_utilization

    def needed(gpu: Gpu) -> float:
        if memory is None:
            return float(utilization * gpu.total)
        return max(memory.state, memory.rollout(utilization, gpu.total))

    roomy = [gpu for gpu in gpus if gpu.free >= needed(gpu)]
    busy = [gpu for gpu in gpus_taken(config, gpus) if gpu not in roomy]
    if not busy:
        return None
    first, chosen = busy[0], ",".join(gpu.id for gpu in roomy[:wanted])
    how = f"set CUDA_VISIBLE_DEVICES={chosen}"
    if len(roomy) < wanted:
        how = "end your processes on the others (nvidia-smi names them), or name other GPUs in CUDA_VISIBLE_DEVICES"
    return (
        f"GPU {first.id} ({first.name}) has {first.free / GB:.0f} of {first.total / GB:.0f} GB free, and the job "
        f"needs {needed(first) / GB:.0f}. It takes the first {wanted} visible GPUs, and {len(roomy)} of the "
        f"{len(gpus)} visible ones have room: {how}"
    )


def memory_notes(config: DictConfig, size: ModelSize, gpus: list[Gpu]) -> Iterator[str]:
    """Passes that do not fit, by arithmetic, if all responses of a micro-batch have their full length."""
    if settings := uncounted(config):
        yield f"GPU memory is not checked: it is not known for {', '.join(settings)}"
    if (memory := gpu_memory(size, config)) is None:
        return
    gpu = min(gpus_taken(config, gpus), key=lambda each: each.total)
    size_key = "max_token_len" if config.actor_rollout_ref.actor.use_dynamic_bsz else "micro_batch_size"
    passes = [("an update", memory.update, "actor.ppo")]
    if not bypasses_old_log_probs(config):
        passes.append(("the pass for old log-probs", memory.old_log_probs, "rollout.log_prob"))
    for name, needed, kind in passes:
        if needed > gpu.total:
            yield (
                f"by arithmetic, {name} with responses of full length needs {needed / GB:.0f} GB, and {gpu.name} has "
                f"{gpu.total / GB:.0f}: if memory runs out, lower actor_rollout_ref.{kind}_{size_key}_per_gpu "
                "(docs/gpus.md)"
            )


def gpus_taken(config: DictConfig, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs of these that the trainer takes: Ray hands out the visible ones in order."""
    return gpus[: config.trainer.n_gpus_per_node]


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    path = Path(os.path.abspath(path))
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
