# SPDX-License-Identifier: Apache-2.0
"""The models of an evaluation: directories in Hugging Face's format, ids of its hub, and verl's checkpoints."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cw_grpo.evaluation.generation import run
from cw_grpo.files import new_directory
from cw_grpo.job.plan import LauncherSettings
from cw_grpo.job.processes import short_temporary_root
from cw_grpo.run_config import method_of, read_config
from cw_grpo.runs import TRACKER, checkpoint_steps, last_checkpoint, split_name

logger = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.bin")
NAME = re.compile(r"\w[\w.+-]*(?<!\.log)(?<!\.csv)(?<!\.json)")  # not that of a file of the evaluation


@dataclass(frozen=True)
class Source:
    """What an argument names: a directory in Hugging Face's format, or the actor's part of a run's checkpoint."""

    method: str
    step: int | None
    path: Path
    run: Path | None
    """The run's directory, of a checkpoint."""

    @property
    def label(self) -> str:
        """Tells the models of an evaluation apart; the name of its directory."""
        return self.method if self.step is None else f"{self.method}@{self.step}"


@dataclass(frozen=True)
class Model:
    """A model that can be served: where its weights are, with the SHA-256 of its files."""

    source: Source
    path: Path
    sha256: str

    @property
    def label(self) -> str:
        """Of its source."""
        return self.source.label


def parse(argument: str) -> Source:
    """What ``PATH``, ``PATH@STEP`` or ``NAME=PATH`` names; NAME is the method.

    PATH is a directory in Hugging Face's format, an id of its hub, a checkpoint of verl (``.../global_step_N`` or its
    ``actor``) or a run's directory, whose last checkpoint is taken unless STEP says which.

    Raises:
        ValueError: there is no such model; says what there is.
    """
    name, rest = split_name(argument)
    path, step = Path(rest).expanduser(), None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+)", rest)):
        path, step = Path(match[1]).expanduser(), int(match[2])
    if not path.exists():
        path = _from_hub(rest)
        name = name or rest.rpartition("/")[2]
    path = path.resolve()
    if (path / "config.json").is_file():
        if step is not None:
            raise ValueError(f"{argument}: {path} is a model, which has no checkpoint of step {step}")
        return Source(_checked(name or path.name, argument), None, path, None)
    actor = _actor(path, step)
    found = re.fullmatch(r"global_step_(\d+)", actor.parent.name)
    run = actor.parents[2] if actor.parents[1].name == "checkpoints" else actor.parents[1]
    return Source(_checked(name or _method(run), argument), int(found[1]) if found else None, actor, run)


def _checked(name: str, argument: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{argument}: {name!r} cannot name a model's directory; choose another with NAME=PATH")
    return name


def _from_hub(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"{name}: there is no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*/*"]))
    except Exception as error:  # of httpx, huggingface_hub and its cache
        line = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name}: there is no such directory, and no such model on the Hugging Face hub or in its cache: {line}"
        ) from error


def _actor(path: Path, step: int | None) -> Path:
    """The actor's directory, of a checkpoint or of a run."""
    if path.name == "actor" or (path / "fsdp_config.json").is_file():
        return path
    if (path / "actor").is_dir():
        return path / "actor"
    root = next((root for root in (path / "checkpoints", path) if (root / TRACKER).is_file()), None)
    if root is None:
        raise ValueError(
            f"{path}: neither a model in Hugging Face's format (no config.json) nor a checkpoint of verl "
            f"(no actor directory, no {TRACKER})"
        )
    if step is None:
        try:
            step = last_checkpoint(root)
        except ValueError as error:
            raise ValueError(f"{error}: name one with {path}@STEP") from error
    actor = root / f"global_step_{step}" / "actor"
    if not actor.is_dir():
        steps = ", ".join(map(str, checkpoint_steps(root))) or "none"
        raise ValueError(f"{root} has no checkpoint of step {step}; it has {steps}")
    return actor


def _method(run: Path) -> str:
    """The method of a run, from its configuration; the directory's name if it has none."""
    try:
        return method_of(read_config(run))
    except (OSError, ValueError):
        return run.name


def servable(source: Source, settings: LauncherSettings, log: Path) -> Model:
    """A model that can be served; a checkpoint is merged by verl's ``model_merger`` into ``merged`` beside its shards.

    Args:
        source: what to serve.
        settings: the node ``launcher``, for the merger's environment.
        log: takes the merger's output.

    Raises:
        ValueError: there are no weights.
        LaunchError: the merger failed.
    """
    path = source.path if source.run is None else _merged(source.path, settings, log)
    if not _weights(path):
        raise ValueError(f"{path} has no weights ({', '.join(WEIGHTS)})")
    logger.info(f"{source.label}: {path}")
    return Model(source, path, _digest(path))


def _weights(directory: Path) -> list[Path]:
    return [file for pattern in WEIGHTS for file in directory.glob(pattern)]


def _merged(actor: Path, settings: LauncherSettings, log: Path) -> Path:
    saved = actor / "huggingface"  # with its weights if `save_contents` has hf_model
    if _weights(saved):
        return saved
    shards = sorted(actor.glob("model_world_size_*_rank_*.pt"))
    if not shards:
        raise ValueError(
            f"{actor} has no weights that can be merged (no model_world_size_*_rank_*.pt of verl's FSDP engines): "
            "actor_rollout_ref.actor.checkpoint.save_contents must have `model` or `hf_model`. Another engine's "
            "checkpoint can be merged by hand with verl's model_merger"
        )
    target = actor / "merged"
    if _weights(target):
        if target.stat().st_mtime >= max(shard.stat().st_mtime for shard in shards):
            return target
        shutil.rmtree(target)  # of an earlier run that wrote its checkpoints here
    logger.info(f"merging {actor}")
    temporary = Path(tempfile.mkdtemp(prefix="cwg-", dir=short_temporary_root()))
    try:
        with new_directory(target) as directory:
            command: Sequence[str] = [
                *(sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"),
                *("--local_dir", str(actor), "--target_dir", str(directory)),
            ]
            run(command, settings, log, temporary=temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _digest(directory: Path) -> str:
    """The SHA-256 of a directory's files, by name."""
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
