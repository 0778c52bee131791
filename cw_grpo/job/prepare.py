# SPDX-License-Identifier: Apache-2.0
"""What a job's node `prepare` asks for: the model, the data, the reward's path, samples of tokens for the report."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cw_grpo.job.plan import LaunchError, Plan, did_you_mean, environment, quote
from cw_grpo.job.probe import ProbeError, probe

logger = logging.getLogger(__name__)

KEYS = ("model", "prompt", "data", "reward", "record", "bfloat16")
# Without weights in other formats, which transformers and vLLM do not read if there are safetensors.
_FETCH = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"])
"""


def prepare_inputs(plan: Plan, home: Path, run: Path) -> list[str]:
    """Make the model and the data that ``prepare`` names and ``home`` lacks; the overrides that point to them.

    A model of the Hugging Face hub is fetched once, before the job.

    ``prepare.record`` has the plugin write samples of tokens to the run's directory.

    Raises:
        LaunchError: what cannot be made, and why.
    """
    node: Any = OmegaConf.to_container(plan.config.get("prepare") or OmegaConf.create(), resolve=True)
    if unknown := sorted(set(node) - set(KEYS)):
        hint = did_you_mean(unknown[0], KEYS)
        raise LaunchError(f"prepare.{unknown[0]} does not exist{hint}; the keys are {', '.join(KEYS)}")
    overrides = []
    try:
        if "reward" in node and not plan.sets("reward.custom_reward_function.path"):
            reward = (plan.config_dir / node["reward"]).resolve()
            if not reward.is_file():
                raise LaunchError(f"prepare.reward: {reward} does not exist")
            overrides.append(f"reward.custom_reward_function.path={quote(reward)}")
        if "record" in node and not plan.sets("algorithm.cw_grpo.record"):
            settings = {"record": quote(run / "record")} | {f"record_{key}": v for key, v in node["record"].items()}
            overrides += [f"++algorithm.cw_grpo.{key}={value}" for key, value in settings.items()]
        if "model" in node and not plan.sets("actor_rollout_ref.model.path"):
            overrides.append(f"actor_rollout_ref.model.path={quote(_prepare_model(node['model'], home))}")
        elif plan.launcher.start_ray:
            path = OmegaConf.select(plan.config, "actor_rollout_ref.model.path")
            if path is not None and is_hub_id(path):
                fetch_model(path, environment(plan.config))
        for split, key in (("train", "data.train_files"), ("val", "data.val_files")):
            if split in node.get("data", {}) and not plan.sets(key):
                prompt = (plan.config_dir / node["prompt"]).resolve()
                overrides.append(f"{key}={quote(_prepare_data(node['data'][split], split, prompt, home))}")
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise LaunchError(f"prepare: {error}", status=1) from error
    return overrides


def made_keys(plan: Plan) -> set[str]:
    """The keys whose files :func:`prepare_inputs` makes."""
    prepared = plan.config.get("prepare") or {}
    keys = {f"data.{split}_files" for split in prepared.get("data", {})}
    keys |= {"actor_rollout_ref.model.path"} if "model" in prepared else set()
    return {key for key in keys if not plan.sets(key)}


def _prepare_model(settings: dict[str, Any], home: Path) -> Path:
    from cw_grpo.job.small_models import identity, make_model

    directory = home / "models" / f"{settings['name']}-{_digest(identity(**settings))}"
    if not directory.exists():
        make_model(**settings, out=directory)
    return directory


def is_hub_id(path: str) -> bool:
    """Whether a model's path can only be the name of one on the Hugging Face hub."""
    local = path.startswith(("/", "./", "../", "~")) or "://" in path or Path(path).exists()
    return not local and path.count("/") == 1


def fetch_model(name: str, env: Mapping[str, str]) -> None:
    """Download a model of the Hugging Face hub into the job's cache, where every rank and server finds it.

    Raises:
        OSError: it is not there, and the hub cannot be reached.
    """
    logger.info("model: fetching %s from the Hugging Face hub, unless its cache has it", name)
    try:
        probe(_FETCH, name, env=env, show_stderr=True)
    except ProbeError as error:
        raise OSError(f"{name} cannot be fetched: {error}") from error


def _prepare_data(settings: dict[str, Any], split: str, prompt: Path, home: Path) -> Path:
    from cw_grpo.datasets.prompts import Prompt
    from cw_grpo.datasets.reasoning_gym import reasoning_gym_rows
    from cw_grpo.datasets.rows import write_rows

    name = f"{settings['task']}-{split}-{_digest([settings, prompt.read_text()])}.parquet"
    out = home / "data" / name
    if not out.exists():
        try:
            rows = write_rows(reasoning_gym_rows(**settings, split=split, prompt=Prompt(prompt)), out)
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"the package {error.name}, which makes these questions, is not installed: pip install reasoning-gym, "
                f"or copy {out} from where it was made"
            ) from error
        logger.info("data: %d questions of %s in %s", rows, settings["task"], out)
    return out


def _digest(settings: Any) -> str:
    """Names what was made by how: other settings give another file, never a stale one."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
