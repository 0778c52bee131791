"""The models of an evaluation: folders in Hugging Face's format, ids of its hub, and verl's checkpoints."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cw_grpo.evaluation.generation import run
from cw_grpo.files import new_directory
from cw_grpo.job.plan import LauncherSettings
from cw_grpo.job.processes import short_temporary_root
from cw_grpo.runs import TRACKER, last_checkpoint, method_of

WEIGHTS = ("*.safetensors", "*.bin")
NAME = re.compile(r"\w[\w.+-]*(?<!\.log)(?<!\.csv)(?<!\.json)")  # not that of a file of the evaluation


@dataclass(frozen=True)
class Source:
    """What an argument names: a folder in Hugging Face's format, or the actor's part of a checkpoint."""

    method: str
    step: int | None
    path: Path
    checkpoint: bool

    @property
    def label(self) -> str:
        """Tells the models of an evaluation apart; the name of its folder."""
        return self.method if self.step is None else f"{self.method}@{self.step}"


@dataclass(frozen=True)
class Model:
    """A model that can be served, with the SHA-256 of its files."""

    method: str
    step: int | None
    label: str
    source: Path
    path: Path
    sha256: str


def parse(argument: str) -> Source:
    """What ``PATH``, ``PATH@STEP`` or ``NAME=PATH`` names; NAME is the method.

    PATH is a folder in Hugging Face's format, an id of its hub, a checkpoint of verl (``.../global_step_N`` or its
    ``actor``) or a run's folder, whose last checkpoint is taken unless STEP says which.

    Raises:
        ValueError: there is no such model; says what there is.
    """
    name, equals, rest = argument.partition("=")
    if not equals or Path(argument).exists():
        name, rest = "", argument
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
        return Source(_checked(name or path.name, argument), None, path, False)
    actor = _actor(path, step)
    found = re.fullmatch(r"global_step_(\d+)", actor.parent.name)
    run_folder = actor.parents[2] if actor.parents[1].name == "checkpoints" else actor.parents[1]
    return Source(_checked(name or _method(run_folder), argument), int(found[1]) if found else None, actor, True)


def _checked(name: str, argument: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{argument}: {name!r} cannot name a model's folder; choose another with NAME=PATH")
    return name


def _from_hub(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"{name}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*/*"]))
    except Exception as error:  # of httpx, huggingface_hub and its cache
        line = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name}: there is no such folder here, and no such model on the Hugging Face hub or in its cache: {line}"
        ) from error


def _actor(path: Path, step: int | None) -> Path:
    """The actor's folder of a checkpoint, of a checkpoint's folder or of a run's."""
    if path.name == "actor" or (path / "fsdp_config.json").is_file():
        return path
    if (path / "actor").is_dir():
        return path / "actor"
    root = next((root for root in (path / "checkpoints", path) if (root / TRACKER).is_file()), None)
    if root is None:
        raise ValueError(
            f"{path}: neither a model in Hugging Face's format (no config.json) nor a checkpoint of verl "
            f"(no actor folder, no {TRACKER})"
        )
    if step is None:
        try:
            step = last_checkpoint(root)
        except ValueError as error:
            raise ValueError(f"{error}: name one with {path}@STEP") from error
    actor = root / f"global_step_{step}" / "actor"
    if not actor.is_dir():
        # verl leaves the folder, without the actor, of a checkpoint that it no longer keeps.
        found = (re.fullmatch(r"global_step_(\d+)", folder.parent.name) for folder in root.glob("*/actor"))
        steps = sorted(int(match[1]) for match in found if match)
        raise ValueError(f"{root} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}")
    return actor


def _method(run_folder: Path) -> str:
    """The method of a run, from its configuration; the folder's name where it has none."""
    try:
        config = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        return run_folder.name
    return method_of(config)


def prepare(source: Source, settings: LauncherSettings, log: Path, echo: Callable[[str], None]) -> Model:
    """A model that can be served; a checkpoint is merged by verl's ``model_merger`` into ``merged`` beside its shards.

    Args:
        source: what to serve.
        settings: the node ``launcher``, for the merger's environment.
        log: takes the merger's output.
        echo: takes a line for the terminal.

    Raises:
        ValueError: there are no weights.
        LaunchError: the merger failed.
    """
    path = _merged(source.path, settings, log, echo) if source.checkpoint else source.path
    if not _weights(path):
        raise ValueError(f"{path} has no weights ({', '.join(WEIGHTS)})")
    echo(f"{source.label}: {path}")
    return Model(source.method, source.step, source.label, source.path, path, _digest(path))


def _weights(folder: Path) -> list[Path]:
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def _merged(actor: Path, settings: LauncherSettings, log: Path, echo: Callable[[str], None]) -> Path:
    saved = actor / "huggingface"  # with its weights where `save_contents` has hf_model
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
    echo(f"merging {actor}")
    temporary = Path(tempfile.mkdtemp(prefix="cwg-", dir=short_temporary_root()))
    try:
        with new_directory(target) as folder:
            command: Sequence[str] = [
                *(sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"),
                *("--local_dir", str(actor), "--target_dir", str(folder)),
            ]
            run(command, settings, log, temporary=temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _digest(folder: Path) -> str:
    """The SHA-256 of a folder's files, by name."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
