# SPDX-License-Identifier: Apache-2.0
"""The job that a command line asks for, composed as hydra will compose it in verl's process."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cw_grpo.paths import RECIPE
from cw_grpo.run_config import flatten


class LaunchError(Exception):
    """A user-facing error that prevents a run."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class LauncherSettings:
    """The node `launcher` of a job, which verl ignores."""

    env: dict[str, Any] = field(default_factory=dict)
    """Environment variables of every process of the job; null removes one."""
    start_ray: bool = True
    """Start a Ray cluster for the job alone; otherwise the one of RAY_ADDRESS, or that runs on this machine."""
    threads: int = 1
    """Threads of each process, which `env` may refer to."""
    startup_timeout_s: float | None = None
    """Seconds to the first metrics, after which the job is stopped; null for no limit."""
    flash_attn_optional: bool = False
    """Whether the job takes `attention=sdpa` if flash-attn is not installed."""
    idle_warning_s: float = 120.0
    """Seconds without a line from verl, after which the terminal says so."""

    def environment(self, user: Mapping[str, str]) -> dict[str, str]:
        """The user's, with what ``env`` sets and removes; without RAY_ADDRESS if the job has a cluster of its own."""
        kept = {key: value for key, value in user.items() if key != "RAY_ADDRESS" or not self.start_ray}
        return {key: str(value) for key, value in (kept | self.env).items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """A composed job."""

    config_dir: Path
    config_name: str
    overrides: tuple[str, ...]
    config: DictConfig
    choices: Mapping[str, str]
    """Which file was chosen of each config group."""

    def sets(self, key: str) -> bool:
        """Whether the user's own overrides set the key."""
        parsed = OverridesParser.create().parse_overrides(list(self.overrides))
        return any(override.key_or_group == key for override in parsed)

    @property
    def launcher(self) -> LauncherSettings:
        """The node `launcher`; see :func:`launcher_settings`."""
        return launcher_settings(self.config)

    @property
    def name(self) -> str:
        """`scale-method`, or the primary config's name if it has no such groups."""
        chosen = [self.choices[group] for group in ("scale", "method") if group in self.choices]
        return "-".join(chosen) or self.config_name


def launcher_settings(config: DictConfig) -> LauncherSettings:
    """The node `launcher` of a composed job, checked.

    Raises:
        LaunchError: an unknown key, or a value of the wrong type.
    """
    node: Any = OmegaConf.to_container(config.get("launcher") or OmegaConf.create(), resolve=True)
    known = LauncherSettings.__dataclass_fields__
    for key in node:
        if key not in known:
            hint = did_you_mean(key, known)
            raise LaunchError(f"launcher.{key} is not a setting{hint or '; the settings are: ' + ', '.join(known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(LauncherSettings), node)
    except OmegaConfBaseException as error:
        raise LaunchError(f"launcher.{error.full_key}: {str(error).splitlines()[0]}") from error
    settings: Any = OmegaConf.to_object(merged)
    return settings


def environment(config: DictConfig) -> dict[str, str]:
    """The environment of a composed job's processes: this process's, with what `launcher.env` sets and removes."""
    return launcher_settings(config).environment(os.environ)


def default_config_dir() -> Path:
    """The recipe's config directory.

    Raises:
        LaunchError: it does not exist.
    """
    directory = RECIPE / "config"
    if not directory.is_dir():
        raise LaunchError(f"{directory} does not exist: name the recipe's config directory with --config-path")
    return directory


def make_plan(overrides: Sequence[str], *, config_dir: Path | None = None, config_name: str = "cw_grpo") -> Plan:
    """Compose the job as hydra will in verl's process.

    Raises:
        LaunchError: a group, key or value that does not exist; says which ones do.
    """
    config_dir = (config_dir or default_config_dir()).expanduser().resolve()
    if not config_dir.is_dir():
        raise LaunchError(f"--config-path {config_dir}: no such directory")
    try:
        config = _compose(config_dir, config_name, overrides)
        choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise LaunchError(_explain(error, config_dir, config_name)) from error
    return Plan(config_dir, config_name, tuple(overrides), config, choices)


def added_keys_like_others(plan: Plan) -> list[str]:
    """A warning for each key that `+` or `++` adds to the job beside a key of a similar name."""
    parsed = OverridesParser.create().parse_overrides(list(plan.overrides))
    warnings = []
    for override in parsed:
        parent, _, name = override.key_or_group.rpartition(".")
        if not (override.is_add() or override.is_force_add()) or override.package is not None:
            continue
        node = OmegaConf.select(plan.config, parent) if parent else plan.config
        others = [str(key) for key in node if key != name] if isinstance(node, DictConfig) else []
        if not _plan_has(plan, override.key_or_group) and (hint := did_you_mean(name, others)):
            warnings.append(f"warning: {override.key_or_group} is a new key, which verl may ignore{hint}")
    return warnings


def _plan_has(plan: Plan, key: str) -> bool:
    """Whether the job has the key without the user's own values for it."""
    others = [override for override in plan.overrides if override.lstrip("+").partition("=")[0] != key]
    try:
        config = _compose(plan.config_dir, plan.config_name, others)
    except (HydraException, OmegaConfBaseException):
        return True
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and name in node


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of the names; empty if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def quote(value: Path | str) -> str:
    """A string as a value in hydra's grammar, in which a backslash is only special before a quote."""
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value))
    return "'" + doubled.replace("'", "\\'") + "'"


def _compose(config_dir: Path, config_name: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(config_dir), version_base=None):
        return compose(
            config_name,
            overrides=[*_search_path(config_dir / f"{config_name}.yaml"), *overrides],
            return_hydra_config=True,
        )


def _search_path(primary: Path) -> list[str]:
    """The override that names the packages of a primary config's search path by their directories.

    hydra would import them, and verl takes seconds.
    """
    try:
        paths = yaml.safe_load(primary.read_text(encoding="utf-8"))["hydra"]["searchpath"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []  # none, or what hydra itself explains
    return [f"hydra.searchpath=[{','.join(quote(_directory(path)) for path in paths)}]"]


def _directory(path: str) -> str:
    """`pkg://verl.trainer.config` as a directory; what is not the package's own, or not installed, stays as it is."""
    package, *parts = path.removeprefix("pkg://").split(".")
    found = importlib.util.find_spec(package) if path.startswith("pkg://") else None
    locations = found.submodule_search_locations if found is not None else None
    return f"file://{Path(next(iter(locations)), *parts)}" if locations else path


def _explain(error: Exception, config_dir: Path, config_name: str) -> str:
    """Hydra's message in a user's words, with the nearest name that exists."""
    cause = f"\n{error.__cause__}" if error.__cause__ else ""
    text = f"{error}{cause}".split("\nConfig search path:")[0].strip()
    if isinstance(error, OverrideParseException):
        return (
            f"hydra cannot read {error.override!r}. An override is key=value; a value with special characters "
            "(~ , = { } [ ] or spaces) needs quotes of its own within the shell's, as in \"key='value'\""
        )
    if choice := re.search(r"Could not find '[^']*/([^/']+)'", text):
        return text + did_you_mean(choice[1], re.findall(r"^\t(\S+)$", text, re.M))
    if key := re.search(r"Could not override '([^']+)'", text):
        try:
            known = flatten(OmegaConf.to_container(_compose(config_dir, config_name, [])))
        except (HydraException, OmegaConfBaseException):
            known = {}
        # Hydra would advise to add the key with +, but verl ignores a key that it does not know.
        hint = did_you_mean(key[1], known) or f". To add a key that verl does not have, write +{key[1]}=..."
        return f"there is no key {key[1]}{hint}"
    return text
