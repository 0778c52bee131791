"""What a job needs from this machine, looked at before anything is started."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from cw_grpo.checks.layout import layout_problem
from cw_grpo.datasets import BENCHMARKS

_LOCAL = ("/", "./", "../", "~")


def problem(config: DictConfig, made: set[str], private_ray: bool) -> str | None:
    """The first thing that stands in the job's way here, and what to do about it; None where nothing does.

    Args:
        config: the job's.
        made: the keys whose files are made for the job.
        private_ray: whether the job has a Ray cluster of its own, on this machine; GPUs and packages of another
            cluster's nodes are not looked at (`cw-grpo doctor --address` does).
    """
    here = missing_nodes(config) or missing_gpus(config) or missing_packages(config) if private_ray else None
    return (
        unread_metrics(config)
        or layout_problem(config)
        or here
        or missing_model(config, made)
        or missing_data(config, made)
    )


def unread_metrics(config: DictConfig) -> str | None:
    """Whether the launcher could not read the job's metrics."""
    loggers = config.trainer.logger
    if "file" in ([loggers] if isinstance(loggers, str) else loggers):
        return None
    return (
        f"trainer.logger={loggers} has no `file`, which progress, picture and report are read from: add it, as in "
        "trainer.logger=[console,file,wandb]"
    )


def missing_nodes(config: DictConfig) -> str | None:
    """Whether the job wants several machines of a Ray cluster that has one."""
    if (nodes := OmegaConf.select(config, "trainer.nnodes")) in (None, 1):
        return None
    return (
        f"trainer.nnodes={nodes}, and launcher.private_ray=true starts a Ray cluster on this machine alone. Start one "
        "over the machines and set launcher.private_ray=false, as cluster=nnodes does"
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
        f"trainer.n_gpus_per_node={wanted}, and torch sees {found} GPUs here. Set it to what there is, or "
        "use cluster=cpu with scale=smollm2 or scale=tiny on a machine without"
    )


def missing_packages(config: DictConfig) -> str | None:
    """Which package of verl's extras the job's engine or rollout lacks in this Python."""

    def lacks(*packages: str) -> bool:
        return all(find_spec(package) is None for package in packages)

    def setting(key: str) -> object:
        return OmegaConf.select(config, f"actor_rollout_ref.{key}")

    rollout, strategy = setting("rollout.name"), setting("actor.strategy")
    if rollout == "vllm" and lacks("vllm"):
        return 'actor_rollout_ref.rollout.name=vllm, and vllm is not installed here: pip install ".[vllm]"'
    if strategy == "megatron" and lacks("megatron"):
        return 'model_engine=megatron, and Megatron is not installed here: pip install "verl[megatron]"'
    attention, packed = setting("model.override_config.attn_implementation"), setting("model.use_remove_padding")
    # verl's FSDP takes flash_attention_2 unless told otherwise; transformers takes it from either package.
    if str(strategy).startswith("fsdp") and packed and attention is None and lacks("flash_attn", "kernels"):
        return 'FSDP on packed sequences needs flash-attn, which is not installed here: pip install "verl[fsdp]"'
    return None


def missing_model(config: DictConfig, made: set[str]) -> str | None:
    """Whether the model is neither a folder here nor known to the Hugging Face hub or its cache."""
    key = "actor_rollout_ref.model.path"
    path = OmegaConf.select(config, key)
    if key in made or path is None or "://" in path:
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else f"{key}: {folder} has no config.json: not a model"
    if path.startswith(_LOCAL) or path.count("/") != 1:
        return f"{key}: there is no folder {folder}"
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries
    try:
        hf_hub_download(path, "config.json")
    except (OSError, ValueError) as error:
        return (
            f"{key}={path} is neither a folder here nor to be had from the Hugging Face hub ({type(error).__name__}). "
            f"Download it where there is a network (hf download {path} --local-dir FOLDER) and set {key}=FOLDER"
        )
    return None


def missing_data(config: DictConfig, made: set[str]) -> str | None:
    """Which of the job's data files is not there, and what makes it; remote files (`hdfs://...`) are not looked at."""
    for key in ("train_files", "val_files"):
        files = OmegaConf.select(config, f"data.{key}")
        if f"data.{key}" in made or files is None:
            continue
        for file in files if isinstance(files, ListConfig) else [files]:
            path = Path(str(file)).expanduser()
            if "://" in str(file) or path.exists():
                continue
            name = path.stem
            how = (
                f"`cw-grpo data paper {name} --out {path.parent}` makes it" if name in BENCHMARKS else f"set data.{key}"
            )
            return f"data.{key}: there is no {path}; {how}"
    return None
