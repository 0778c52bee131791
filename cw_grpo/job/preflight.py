# SPDX-License-Identifier: Apache-2.0
"""What a job needs from this machine, checked before anything is started."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from cw_grpo.checks.layout import layout_problem
from cw_grpo.datasets import BENCHMARKS
from cw_grpo.doctor.shadowing import shadowing_problem
from cw_grpo.job import machine
from cw_grpo.job.attempt import LOGGER_DIRECTORIES, launcher_env, ray_job_variables
from cw_grpo.job.footprint import ModelSize, gpu_memory
from cw_grpo.job.plan import LaunchError, Plan, environment
from cw_grpo.job.prepare import is_hub_id, made_keys
from cw_grpo.job.probe import ProbeError, probe
from cw_grpo.job.setting_checks import setting_notes, setting_problems

logger = logging.getLogger(__name__)

_MODEL = "actor_rollout_ref.model.path"
_OF_LOGGERS_AND_HUB = ("WANDB_", "SWANLAB_", "MLFLOW_", "HF_")
_HUB = """
import sys
from huggingface_hub import hf_hub_download
hf_hub_download(sys.argv[1], "config.json")
"""
_ADDRESS = """
from ray._private.services import canonicalize_bootstrap_address  # what ray.init("auto") uses
print(canonicalize_bootstrap_address("auto"))
"""
_SIZE = """
import dataclasses, json, sys
from cw_grpo.job.footprint import model_size
print(json.dumps(dataclasses.asdict(model_size(sys.argv[1], trust_remote_code=sys.argv[2] == "True"))))
"""


def check_job_can_run(plan: Plan, checkpoints: Path | None = None, step: int = 0) -> list[str]:
    """Check the settings, and the machine, packages, model and data that the job needs and nobody makes.

    Args:
        plan: the job.
        checkpoints: where they go; None to leave the disk unchecked.
        step: of the checkpoint from which the job resumes; 0 if there is none.

    Returns:
        lines that the user should read.

    Raises:
        LaunchError: all that prevents the job, each with what to do.
    """
    start_ray, made = plan.launcher.start_ray, made_keys(plan)
    found, notes = problems(plan.config, made, start_ray), list(setting_notes(plan.config))
    if start_ray and not found and OmegaConf.select(plan.config, "trainer.device") == "cuda":
        size, gpus = known_size(plan.config, made), machine.find_gpus(plan.config)
        found = size_problems(plan.config, size, gpus, checkpoints, step)
        notes += [] if size is None else machine.memory_notes(plan.config, size, gpus)
    if found:
        text = found[0] if len(found) == 1 else "\n".join([f"{len(found)} problems:", *(f"  - {p}" for p in found)])
        raise LaunchError(text)
    if start_ray:
        return notes
    return [f"joining the Ray cluster at {ray_address(plan.config)}", *unknown_to_nodes(plan), *notes]


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
        found += [missing_nodes(config), machine.missing_gpus(config)]
        found += [] if settings else [machine.missing_cpus(config)]
        found += [*machine.missing_packages(config), *machine.unwritable(config)]
    found += [missing_model(config, made), *missing_data(config, made)]
    return [problem for problem in dict.fromkeys(found) if problem is not None]


def size_problems(
    config: DictConfig, size: ModelSize | None, gpus: list[machine.Gpu], checkpoints: Path | None, step: int
) -> list[str]:
    """What a job with a model of this size needs of the disk and of these GPUs, and they do not have.

    Of a size that is not known, only what the rollout takes is looked for.
    """
    found, memory = [], None
    if size is not None:
        found = [] if checkpoints is None else [machine.missing_disk(config, size, checkpoints, step)]
        memory = gpu_memory(size, config)
    too_much = [] if memory is None else list(machine.memory_problems(config, memory, gpus))
    found += too_much or [machine.busy_gpus(config, memory, gpus)]
    return [problem for problem in found if problem is not None]


def known_size(config: DictConfig, made: set[str]) -> ModelSize | None:
    """The size of the job's model; None if it is made for the job, remote, or cannot be known."""
    path = OmegaConf.select(config, _MODEL)
    if path is None or _MODEL in made or "://" in path:
        return None
    trusted = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code"))
    try:
        return ModelSize(**json.loads(probe(_SIZE, path, str(trusted), env=environment(config))))
    except ProbeError as error:
        logger.info("memory and disk are not checked: the size of %s is not known: %s", path, error)
        return None


def ray_address(config: DictConfig) -> str:
    """The address of the Ray cluster that a job joins.

    Raises:
        LaunchError: no cluster is known.
    """
    try:
        address = probe(_ADDRESS, env=environment(config))
    except ProbeError as error:
        raise LaunchError(f"launcher.start_ray=false: {error}") from error
    if address in ("None", "auto"):
        raise LaunchError(
            "launcher.start_ray=false joins a Ray cluster, but RAY_ADDRESS is not set and none runs on this machine: "
            "start one (ray start --head) or set RAY_ADDRESS"
        )
    return address


def unknown_to_nodes(plan: Plan) -> list[str]:
    """Says which variables of this process, for loggers and the hub, are not handed to the nodes of a joined cluster.

    Some are keys, and verl prints the job's configuration.
    """
    own = OmegaConf.select(plan.config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    handed = (ray_job_variables(os.environ), launcher_env(plan.launcher), LOGGER_DIRECTORIES, own)
    known = {name for variables in handed for name in variables}
    names = [name for name in sorted(os.environ) if name.startswith(_OF_LOGGERS_AND_HUB) and name not in known]
    if not names:
        return []
    return [
        f"{', '.join(names)}: set here, and not handed to the cluster's nodes. The job's processes have them only if "
        "they are set where `ray start` runs, or in the runtime environment of the Ray job"
    ]


def missing_nodes(config: DictConfig) -> str | None:
    """Whether the job wants several machines of a Ray cluster that has one."""
    if (nodes := OmegaConf.select(config, "trainer.nnodes")) in (None, 1):
        return None
    return (
        f"trainer.nnodes={nodes}, but launcher.start_ray=true starts a Ray cluster on this machine alone. Start one "
        "over the machines and set launcher.start_ray=false, as cluster=nnodes does"
    )


def missing_model(config: DictConfig, made: set[str]) -> str | None:
    """Whether the model is neither a directory here nor known to the Hugging Face hub or its cache."""
    key = _MODEL
    path = OmegaConf.select(config, key)
    if path is None and OmegaConf.select(config, key.rpartition(".")[0]) is not None and key not in made:
        return f"{key} is not set: name a directory here or a model of the Hugging Face hub"
    if key in made or path is None or "://" in path or path.startswith("~"):
        return None
    directory = Path(path)
    if directory.is_dir():
        return None if (directory / "config.json").is_file() else f"{key}: {directory} has no config.json: not a model"
    if not is_hub_id(path):
        return f"{key}: {directory} does not exist"
    try:
        probe(_HUB, path, env=environment(config))
    except ProbeError as error:
        kind = str(error).partition(":")[0]
        return (
            f"{key}={path} is neither a directory here nor available on the Hugging Face hub ({kind}). Download it "
            f"on a machine with a network (hf download {path} --local-dir DIRECTORY) and set {key}=DIRECTORY"
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
