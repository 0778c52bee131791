# SPDX-License-Identifier: Apache-2.0
"""What `make upstream` writes: the files of the package, in verl-recipe's form, which work without the package."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cw_grpo.job.plan import make_plan

ROOT = Path(__file__).parents[2]
RUFF = os.environ.get("CW_GRPO_RUFF", str(Path(sys.executable).with_name("ruff")))
"""verl-recipe's ruff is 0.14.10: the workflow has it, `python -m pip install --target DIR ruff==0.14.10`."""
TAKEN = (
    *("groups", "inputs", "weights", "baseline", "metrics"),
    *("settings", "advantage", "policy_loss", "group_order"),
)


@pytest.fixture(scope="module")
def recipe(verl_root: Path) -> Path:
    return verl_root / "recipe" / "cw_grpo"


def test_it_has_the_files_that_verl_recipe_wants(recipe: Path) -> None:
    files = {str(path.relative_to(recipe)) for path in recipe.rglob("*") if path.is_file()}
    wanted = {
        "README.md",
        "REQUIRED_VERL.txt",
        "__init__.py",
        "register.py",
        "reward.py",
        "config/cw_grpo_trainer.yaml",
    }
    assert wanted | {"run_qwen2.5_math_7b_cw_grpo.sh", "tests/test_cw_grpo_on_cpu.py"} <= files
    assert (recipe / "README.md").read_text().startswith("## Required `verl` version\n")
    for path in recipe.rglob("*"):
        if path.suffix in (".py", ".sh"):
            assert "Copyright 2026 Individual Contributor" in path.read_text()
            assert "Licensed under the Apache License, Version 2.0" in path.read_text()


def test_its_method_is_the_packages_byte_for_byte(recipe: Path) -> None:
    for name in TAKEN:
        source = (ROOT / "cw_grpo" / f"{name}.py").read_bytes()
        assert (recipe / f"{name}.py").read_bytes().endswith(source)
    for source in (ROOT / "recipe" / "cw_grpo").glob("reward*"):
        assert (recipe / source.name).read_bytes().endswith(source.read_bytes())
    for source in (ROOT / "recipe" / "cw_grpo" / "config" / "method").iterdir():
        assert (recipe / "config" / "method" / source.name).read_bytes() == source.read_bytes()


def test_it_imports_nothing_of_the_package_and_no_wrapt(recipe: Path) -> None:
    for path in recipe.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                if node.level:
                    assert node.level == 1 and (recipe / f"{node.module}.py").is_file(), f"{path.name}: {node.module}"
            assert not {name.partition(".")[0] for name in names} & {"cw_grpo", "wrapt"}, path.name


def test_verl_recipes_ruff_is_content(recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(recipe, tmp_path / "cw_grpo", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(ROOT / "upstream" / "ruff.toml", tmp_path)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([RUFF, *command, "--no-cache", "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_its_own_tests_pass_without_the_package(stock) -> None:
    done = stock("-c", "import cw_grpo")
    assert done.returncode == 1 and "No module named 'cw_grpo'" in done.stdout
    done = stock("-m", "pytest", "-q", "-p", "no:cacheprovider", "recipe/cw_grpo/tests")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("modules", "plugins"),
    [("recipe.cw_grpo.register", "auto"), ("cw_grpo.plugin,recipe.cw_grpo.register", "none")],
    ids=["installed", "named"],
)
def test_the_package_and_the_directory_at_once_are_rejected_by_name(
    verl_root: Path, modules: str, plugins: str
) -> None:
    env = {"VERL_USE_EXTERNAL_MODULES": modules, "VERL_USE_EXTERNAL_PLUGINS": plugins}
    command = [sys.executable, "-W", "ignore", "-c", "import verl"]
    done = subprocess.run(command, cwd=verl_root, env=os.environ | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "both recipe.cw_grpo.register and the package cw-grpo (cw_grpo.plugin) would register" in done.stderr
    assert "or uninstall the package" in done.stderr


def test_an_output_that_is_not_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        command = [sys.executable, str(ROOT / "scripts" / "upstream.py"), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2
        assert done.stderr == f"error: {out} is not an empty directory: name a new one, or remove what is in it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def composed(recipe: Path, *overrides: str) -> dict:
    with initialize_config_dir(str(recipe / "config"), version_base=None):
        return OmegaConf.to_container(compose("cw_grpo_trainer", list(overrides)), resolve=True)


def test_its_settings_are_those_of_the_papers_run(recipe: Path) -> None:
    ours = OmegaConf.to_container(make_plan(["scale=qwen7b", "cluster=1node"]).config, resolve=True)
    theirs = composed(recipe)
    for part in ("actor", "ref"):
        mine, other = (config["actor_rollout_ref"][part] for config in (ours, theirs))
        # Where the machine decides: the script sets it.
        different = {key for key in mine if mine[key] != other[key]}
        assert different <= {"ulysses_sequence_parallel_size", "megatron"}, different
    for key in ("n", "temperature", "log_prob_micro_batch_size_per_gpu", "val_kwargs"):
        assert ours["actor_rollout_ref"]["rollout"][key] == theirs["actor_rollout_ref"]["rollout"][key]
    for key in ("train_batch_size", "max_prompt_length", "max_response_length"):
        assert ours["data"][key] == theirs["data"][key]
    for key in ("total_training_steps", "save_freq", "test_freq"):
        assert ours["trainer"][key] == theirs["trainer"][key]
    assert ours["algorithm"] == theirs["algorithm"] and ours["critic"]["enable"] == theirs["critic"]["enable"]


def test_its_script_starts_verl_with_keys_that_compose(recipe: Path, tmp_path: Path) -> None:
    noted = tmp_path / "python3"
    noted.write_text('#!/bin/sh\nprintf "%s\\n" "$VERL_USE_EXTERNAL_MODULES" "$@"\n')
    noted.chmod(0o755)
    script = recipe / "run_qwen2.5_math_7b_cw_grpo.sh"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/me"}
    command = ["bash", str(script), "method=cw_grpo_live"]
    done = subprocess.run(command, cwd=recipe.parents[1], env=env, capture_output=True, text=True)
    modules, *arguments = done.stdout.splitlines()
    assert modules == "recipe.cw_grpo.register"
    assert arguments[:4] == [
        "-m",
        "verl.trainer.main_ppo",
        f"--config-path={recipe}/config",
        "--config-name=cw_grpo_trainer",
    ]
    job = composed(recipe, *arguments[4:])
    assert job["actor_rollout_ref"]["actor"]["policy_loss"]["loss_mode"] == "cw_grpo_live"
    assert job["data"]["train_files"] == "/home/me/data/math/train.parquet"
    assert (recipe.parents[1] / job["reward"]["custom_reward_function"]["path"]).is_file()
    assert job["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"] == {"VERL_USE_EXTERNAL_MODULES": modules}
