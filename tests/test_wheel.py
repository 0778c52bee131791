# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed where nothing of the checkout can be found, has all that the commands need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "outputs", "*.egg-info", "docs", "tests")

COMPOSE = """
import json, sys
import verl
from pathlib import Path
from cw_grpo.job.launch import make_plan

assert "cw_grpo.plugin" in sys.modules, "verl did not load the plugin"
for name in ("cw_grpo", "eval"):
    plan = make_plan(["cluster=cpu"], config_name=name)
import cw_grpo
modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "cw_grpo"]
print(json.dumps({
    "version": cw_grpo.__version__,
    "config": str(plan.config_dir),
    "files": [module.__file__ for module in modules],
    "path": sys.path,
}))
"""


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CW_GRPO_HOME")}
    return subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy: setuptools leaves a build directory, and what an older one holds would be in the wheel too.
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, ignore=NOT_SOURCES)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = run([*pip, f"--wheel-dir={out}", str(source)])
    assert done.returncode == 0, done.stdout
    (built,) = out.glob("cw_grpo-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, and with the dependencies of the present one."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index", "--quiet"]
    done = run([*pip, str(wheel)])
    assert done.returncode == 0, done.stdout
    (site,) = directory.glob("lib/python*/site-packages")
    # The .pth files of these directories are not read, so an editable install there has no effect here.
    dependencies = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return site


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script of the environment in an empty directory."""

    def installed(script: str, *arguments: str) -> subprocess.CompletedProcess:
        return run([str(site.parents[2] / "bin" / script), *arguments], cwd=tmp_path)

    return installed


def test_the_wheel_holds_the_package_and_the_recipe(wheel: Path) -> None:
    def files(directory: str) -> set[str]:
        paths = (ROOT / directory).rglob("*")
        return {str(p.relative_to(ROOT)) for p in paths if p.is_file() and "__pycache__" not in p.parts}

    recipe = {path.replace("recipe/cw_grpo", "cw_grpo/recipe", 1) for path in files("recipe/cw_grpo")}
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (licence,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert {name for name in names if ".dist-info/" not in name} == files("cw_grpo") | recipe
    assert "cw_grpo/py.typed" in names


def test_verl_loads_it_and_the_configuration_is_its_own(installed, site: Path) -> None:
    done = installed("python", "-W", "ignore", "-c", COMPOSE)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["config"]) == site / "cw_grpo" / "recipe" / "config"
    assert len(found["files"]) > 10
    assert not [file for file in found["files"] if not Path(file).is_relative_to(site)]
    assert not [entry for entry in found["path"] if Path(entry).is_relative_to(ROOT) and ".venv" not in entry]
    assert found["version"] in next(site.glob("cw_grpo-*.dist-info")).name


def test_train_starts_verl_with_the_recipes_files(installed, site: Path, tmp_path: Path) -> None:
    """The model is an empty one, and the job is stopped at once: what matters is how it was started."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    settings = ("scale=tiny", "cluster=cpu", f"actor_rollout_ref.model.path={tmp_path}/model")
    done = installed("cw-grpo", "train", "--run-dir=run", *settings, "launcher.startup_timeout_s=0")
    assert "stopped: no metrics after 0 s" in done.stdout and done.returncode == 1
    assert len(list((tmp_path / "outputs" / "data").glob("chain_sum-*.parquet"))) == 2
    started = (tmp_path / "run" / "verl.log").read_text()
    recipe = site / "cw_grpo" / "recipe"
    assert f"--config-path={recipe / 'config'}" in started
    assert f"reward.custom_reward_function.path='{recipe / 'reward.py'}'" in started.replace("\\'", "'")


def test_data_and_eval_find_the_recipe(installed, tmp_path: Path) -> None:
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(30)]
    pd.DataFrame(rows).to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    done = installed("cw-grpo", "data", "paper", "aime24", "--from=rows.jsonl", "--out=aime24.parquet")
    assert done.returncode == 0, done.stdout
    made = pd.read_parquet(tmp_path / "aime24.parquet")
    assert len(made) == 30 and "boxed" in str(made.prompt[0])

    done = installed("cw-grpo", "eval", "base=nothing", "--benchmarks=aime24.parquet")
    assert done.returncode == 2 and "nothing" in done.stdout and "config" not in done.stdout, done.stdout
