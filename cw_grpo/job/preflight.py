# SPDX-License-Identifier: Apache-2.0
"""What a job needs from this machine, checked before anything is started."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from cw_grpo.checks.layout import layout_problem
from cw_grpo.datasets import BENCHMARKS
from cw_grpo.doctor.shadowing import shadowing_problem
from cw_grpo.job.plan import LaunchError, Plan
from cw_grpo.job.prepare import made_keys
from cw_grpo.job.setting_checks import setting_notes, setting_problems

_LOCAL = ("/", "./", "../", "~")


def check_job_can_run(plan: Plan) -> list[str]:
    """Check the settings, and the GPUs, packages, model and data that the job needs and nobody makes.

    Returns:
        lines that the user should read.

    Raises:
        LaunchError: all that prevents the job, each with what to do.
    """
    start_ray = plan.launcher.start_ray
    if found := problems(plan.config, made_keys(plan), start_ray):
        text = found[0] if len(found) == 1 else "\n".join([f"{len(found)} problems:", *(f"  - {p}" for p in found)])
        raise LaunchError(text)
    notes = list(setting_notes(plan.config))
    return notes if start_ray else [f"joining the Ray cluster at {ray_address()}", *notes]


def problems(config: DictConfig, made: set[str], start_ray: bool) -> list[str]:
    """All that prevents the job here, each with what to do about it.

    Args:
        config: the job's.
        made: the keys whose files are made for the job.
        start_ray: whether the job has a Ray cluster of its own, on this machine. GPUs, packages and directories of
            another cluster's nodes are not checked (`cw-grpo doctor --address` checks their packages).
    """
    settings = list(setting_problems(config, made))
    found: list[str | None] = [shadowing_problem(Path.cwd()), *settings]
    if not settings:  # a layout of wrong numbers would be rejected once more, with wrong advice
        found.append(layout_problem(config))
    if start_ray:
        found += [missing_nodes(config), missing_gpus(config), *missing_packages(config), *unwritable(config)]
    found += [missing_model(config, made), *missing_data(config, made)]
    return [problem for problem in dict.fromkeys(found) if problem is not None]


def ray_address() -> str:
    """The address of the Ray cluster that a job joins.

    Raises:
        LaunchError: no cluster is known.
    """
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init("auto") uses

    try:
        address = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError) as error:
        raise LaunchError(f"launcher.start_ray=false: {error}") from error
    if address is None or address == "auto":
        raise LaunchError(
            "launcher.start_ray=false joins a Ray cluster, but RAY_ADDRESS is not set and none runs on this machine: "
            "start one (ray start --head) or set RAY_ADDRESS"
        )
    return address


def missing_nodes(config: DictConfig) -> str | None:
    """Whether the job wants several machines of a Ray cluster that has one."""
    if (nodes := OmegaConf.select(config, "trainer.nnodes")) in (None, 1):
        return None
    return (
        f"trainer.nnodes={nodes}, but launcher.start_ray=true starts a Ray cluster on this machine alone. Start one "
        "over the machines and set launcher.start_ray=false, as cluster=nnodes does"
    )


def missing_gpus(config: DictConfig) -> str | None:
    """Whether this machine has fewer GPUs than the job asks for."""
    device, wanted = (OmegaConf.select(config, f"trainer.{key}") for key in ("device", "n_gpus_per_node"))
    if device != "cuda" or wanted is None:
        return None
    import torch

    found = torch.cuda.device_count()
    if found >= wanted:
        return None
    return (
        f"trainer.n_gpus_per_node={wanted}, but torch sees {found} GPUs here. Lower it, or use cluster=cpu with "
        "scale=smollm2 or scale=tiny on a machine without GPUs"
    )


def missing_packages(config: DictConfig) -> Iterator[str]:
    """The packages of verl's extras that the job's engine or rollout lacks in this Python."""

    def lacks(*packages: str) -> bool:
        return all(find_spec(package) is None for package in packages)

    def setting(key: str) -> object:
        return OmegaConf.select(config, f"actor_rollout_ref.{key}")

    rollout, strategy = setting("rollout.name"), setting("actor.strategy")
    if rollout == "vllm" and lacks("vllm"):
        yield 'actor_rollout_ref.rollout.name=vllm, but vllm is not installed here: pip install ".[vllm]"'
    if strategy == "megatron" and lacks("megatron"):
        yield 'model_engine=megatron, but Megatron is not installed here: pip install "verl[megatron]"'
    attention, packed = setting("model.override_config.attn_implementation"), setting("model.use_remove_padding")
    # verl's FSDP takes flash_attention_2 unless told otherwise; transformers takes it from either package.
    if str(strategy).startswith("fsdp") and packed and attention is None and lacks("flash_attn", "kernels"):
        yield 'FSDP on packed sequences needs flash-attn, which is not installed here: pip install "verl[fsdp]"'


def unwritable(config: DictConfig) -> Iterator[str]:
    """The directories that the job would write to and cannot."""
    keys = ("algorithm.cw_grpo.record", "trainer.rollout_data_dir", "trainer.validation_data_dir")
    for key in (*keys, "trainer.default_local_dir"):
        value = OmegaConf.select(config, key)
        if not isinstance(value, str) or "://" in value or value.startswith("~"):
            continue
        directory = Path(os.path.abspath(value))
        existing = next(parent for parent in (directory, *directory.parents) if os.path.lexists(parent))
        try:
            with tempfile.TemporaryDirectory(dir=existing):
                pass
        except OSError as error:
            yield f"{key}={value} cannot be written: {existing}: {error.strerror}"


def missing_model(config: DictConfig, made: set[str]) -> str | None:
    """Whether the model is neither a directory here nor known to the Hugging Face hub or its cache."""
    key = "actor_rollout_ref.model.path"
    path = OmegaConf.select(config, key)
    if path is None and OmegaConf.select(config, key.rpartition(".")[0]) is not None and key not in made:
        return f"{key} is not set: name a directory here or a model of the Hugging Face hub"
    if key in made or path is None or "://" in path or path.startswith("~"):
        return None
    directory = Path(path)
    if directory.is_dir():
        return None if (directory / "config.json").is_file() else f"{key}: {directory} has no config.json: not a model"
    if path.startswith(_LOCAL) or path.count("/") != 1:
        return f"{key}: {directory} does not exist"
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries
    try:
        hf_hub_download(path, "config.json")
    except (OSError, ValueError) as error:
        return (
            f"{key}={path} is neither a directory here nor available on the Hugging Face hub ({type(error).__name__}). "
            f"Download it on a machine with a network (hf download {path} --local-dir DIRECTORY) and set "
            f"{key}=DIRECTORY"
        )
    return None


def missing_data(config: DictConfig, made: set[str]) -> Iterator[str]:
    """The job's data files that do not exist, and what makes them; remote files (`hdfs://...`) are not checked."""
    for key in ("train_files", "val_files"):
        files = OmegaConf.select(config, f"data.{key}")
        if f"data.{key}" in made or files is None:
            continue
        for file in files if isinstance(files, ListConfig) else [files]:
            path = Path(str(file))
            if "://" in str(file) or str(file).startswith("~") or path.exists():
                continue
            name = path.stem
            command = f"`cw-grpo data paper {name} --out {path.parent}` makes it"
            how = command if name in BENCHMARKS else f"set data.{key}"
            yield f"data.{key}: {path} does not exist; {how}"
