# SPDX-License-Identifier: Apache-2.0
"""README and docs: their commands, links and names exist. Nothing here starts a trainer."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import metadata, requires
from pathlib import Path

import pandas as pd
import pytest
import torch
import verl
from hydra import compose, initialize_config_module
from markdown_it import MarkdownIt
from markdown_it.token import Token
from omegaconf import OmegaConf
from pages import with_table
from typer.main import get_command

from cw_grpo import covariance_weights
from cw_grpo.cli import app
from cw_grpo.job.plan import make_plan
from cw_grpo.metrics import PREFIX, TOP_SHARES, weight_metrics
from cw_grpo.run_config import flatten
from cw_grpo.settings import Options

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipe" / "cw_grpo"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RECIPE / "README.md"]
MARKER = re.compile(r"<!-- (not run: \S.*|run by (?P<test>tests/\S+\.py)(: .+)?) -->\n")
LAUNCHERS = {
    "run_cw_grpo_cpu.sh": ("cluster=cpu",),
    "run_cw_grpo_gpu.sh": ("cluster=1node",),
    "run_cw_grpo_qwen1_5b.sh": ("scale=qwen1_5b", "cluster=1node"),
    "run_cw_grpo_qwen7b.sh": ("scale=qwen7b", "cluster=1node"),
}
"""What each launcher puts before its own arguments, for `cw-grpo train`."""
OTHERS = {"cd", "env", "git", "head", "lighteval", "ray", "scontrol", "sleep", "srun"}
"""Programs whose arguments are not checked."""
NOTE_CALLS = r"""
PATH=/nowhere
command_not_found_handle() { local call; printf -v call '%s\x1f' "$@"; printf '%s\x1e' "$call" >>"$CALLS"; }
"""
"""bash calls that function in the place of every program."""
COMPOSED: set[tuple[str, ...]] = set()
"""The keys of the jobs that were composed."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=name_of)
def page(request) -> Path:
    return request.param


@pytest.fixture(autouse=True)
def nnodes(monkeypatch) -> None:
    monkeypatch.setenv("NNODES", "2")


def parse(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def inline(page: Path, kind: str) -> Iterator[Token]:
    for token in parse(page):
        yield from (child for child in token.children or () if child.type == kind)


def calls_of(script: str, tmp_path: Path) -> list[list[str]]:
    """The programs that bash would call for this script, with their arguments."""
    script = script.replace("outputs/lighteval/bin/", "")
    noted = tmp_path / "calls"
    noted.unlink(missing_ok=True)
    environment = {"CALLS": str(noted), "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "nodes"}
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, "-c", f"{NOTE_CALLS}{script}\nwait"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), script
    return [call.split("\x1f")[:-1] for call in noted.read_text().split("\x1e")[:-1]]


def check_overrides(config_name: str, overrides: list[str]) -> None:
    """Compose a job, once for its keys: `tests/recipe/test_config.py` composes all choices of the groups."""
    for override in overrides:
        group, _, choice = override.partition("=")
        if (RECIPE / "config" / group).is_dir():
            assert (RECIPE / "config" / group / f"{choice}.yaml").is_file(), override
    keys = (config_name, *(override.partition("=")[0] for override in overrides))
    if keys not in COMPOSED:
        make_plan(overrides, config_name=config_name)
        COMPOSED.add(keys)


def check_command(arguments: list[str]) -> None:
    """Parse the arguments of `cw-grpo` and compose the job that they name."""
    command, names = get_command(app), list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[names.pop(0)]
    given = command.make_context(command.name, names).params
    if command.name in ("train", "eval"):
        check_overrides({"train": "cw_grpo", "eval": "eval"}[command.name], given["overrides"] or [])


def check_verl(arguments: list[str]) -> None:
    """Compose a job on verl's plain trainer; argparse wants options before overrides."""
    options = [argument for argument in arguments if argument.startswith("--")]
    assert arguments[: len(options)] == options == ["--config-dir=recipe/cw_grpo/config"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        compose("ppo_trainer", [f"hydra.searchpath=[file://{RECIPE}/config]", *arguments[len(options) :]])


def check_call(program: str, *arguments: str) -> None:
    if program == "cw-grpo":
        check_command(list(arguments))
    elif program == "bash":
        script = Path(arguments[0]).name
        assert (ROOT / "scripts" / script).is_file(), script
        if script in LAUNCHERS:
            check_command(["train", *LAUNCHERS[script], *(word for word in arguments[1:] if word != "compare")])
    elif program == "python" and arguments[:2] == ("-m", "verl.trainer.main_ppo"):
        check_verl(list(arguments[2:]))
    elif program == "python" and arguments[0].startswith("examples/"):
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program == "python":
        assert arguments[:2] == ("-m", "venv")
    elif program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif program == "pip":
        extras = {extra for argument in arguments for extra in re.findall(r"^\.\[(\w+)\]$", argument)}
        assert extras <= set(metadata("cw-grpo").get_all("Provides-Extra"))
    else:
        assert program in OTHERS, program
    if "--" in arguments and program == "ray":
        check_call(*[word for word in arguments[arguments.index("--") + 2 :] if not re.match(r"[A-Z_]+=", word)])


def test_commands(page: Path, tmp_path) -> None:
    """Each block says which test runs it, or why none does; its programs take their arguments."""
    before = None
    for token in parse(page):
        if token.type == "fence":
            assert token.info in ("bash", "python", "text", "yaml"), token.content
        if token.type == "fence" and token.info == "bash":
            marker = before is not None and before.type == "html_block" and MARKER.fullmatch(before.content)
            assert marker, f"no `not run: ...` or `run by ...` before:\n{token.content}"
            assert marker["test"] is None or (ROOT / marker["test"]).is_file(), marker["test"]
            for call in calls_of(token.content, tmp_path):
                check_call(*call)
        before = token


def test_python() -> None:
    """Each block runs on a group of three responses, and prints the numbers of the block of text after it."""
    pairs = [pair for page in PAGES for pair in itertools.pairwise(parse(page)) if pair[0].info == "python"]
    assert pairs
    for block, after in pairs:
        names = {"log_probs": -torch.rand(3, 5), "advantages": torch.tensor([1.0, -0.5, -0.5])}
        names |= {"response_mask": torch.ones(3, 5), "index": [0, 0, 0]}
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(block.content, names)
        shown = after.content if after.info == "text" else ""
        printed, promised = (re.findall(r"[+-]?\d+\.\d+", text) for text in (output.getvalue(), shown))
        assert [float(number) for number in printed] == pytest.approx([float(number) for number in promised], abs=0.01)


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    tokens = parse(page)
    titles = [text.content for open_, text in itertools.pairwise(tokens) if open_.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links(page: Path) -> None:
    targets = [token.attrs["href"] for token in inline(page, "link_open")]
    targets += [token.attrs["src"] for token in inline(page, "image")]
    for target in targets:
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.is_file(), target
            assert not anchor or anchor in anchors(file), target


@pytest.fixture(scope="module")
def config_keys() -> set[str]:
    """All runs of whole segments of the config's keys: a name in the docs may leave out the beginning or the end."""
    jobs = [["scale=tiny", "cluster=cpu"], ["scale=qwen1_5b", "cluster=nnodes", "model_engine=megatron"]]
    keys = {f"algorithm.cw_grpo.{field.name}" for field in fields(Options)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNODES", "2")
        for overrides in jobs:
            keys |= flatten(OmegaConf.to_container(make_plan(overrides).config, resolve=False)).keys()
    parts = [key.split(".") for key in keys]
    return {".".join(p[i:j]) for p in parts for i in range(len(p)) for j in range(i + 1, len(p) + 1)}


@pytest.fixture(scope="module")
def source() -> str:
    """What names are looked up in: the project's files, and verl's trainer."""
    files = [path for folder in ("cw_grpo", "examples", "recipe", "scripts") for path in (ROOT / folder).rglob("*")]
    files += (Path(verl.__file__).parent / "trainer" / "ppo").rglob("*.py")
    suffixes = (".py", ".yaml", ".sh")
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix in suffixes)


def metric_names() -> set[str]:
    weights = covariance_weights(-torch.rand(2, 3), torch.tensor([1.0, -1.0]), torch.ones(2, 3))
    return set(weight_metrics(weights))


def test_names(page: Path, config_keys: set[str], source: str) -> None:
    """Config keys, metrics, files and identifiers that are named as `code`."""
    segments = {key for key in config_keys if "." not in key}
    missing = []
    for name in {word for token in inline(page, "code_inline") for word in token.content.split()}:
        key = name.lstrip("+").partition("=")[0]
        if name.startswith(("cw_grpo/", "recipe/", "scripts/", "docs/", "tests/", "config/", "results/")):
            exists = (ROOT / name).exists() or (RECIPE / name).exists()
        elif name.startswith(PREFIX):
            exists = name in metric_names() or name == PREFIX
        elif re.fullmatch(r"(actor|critic|response_length)/[\w/]+", name):
            exists = name in source
        elif re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", key) and key.partition(".")[0] in segments:
            exists = key in config_keys or (RECIPE / key).exists()
        elif re.fullmatch(r"[a-z][a-z0-9]+(_[a-z0-9]+)+", key):
            exists = key in segments or key in source
        else:
            continue
        if not exists:
            missing.append(name)
    assert not missing


def test_the_versions_for_gpus_are_those_that_verl_pins() -> None:
    page = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    pins = {name: pin for name, pin in re.findall(r"(torch|vllm|flash-attn)==([\d.]+)", "\n".join(requires("verl")))}
    for name, shown in (("torch", "torch"), ("vllm", "vLLM"), ("flash-attn", "flash-attn")):
        assert f"{shown} {pins[name]}" in re.sub(r"\s+", " ", page), name


def test_every_metric_is_explained() -> None:
    explained = {token.content for token in inline(ROOT / "docs" / "metrics.md", "code_inline")}
    last = list(TOP_SHARES)[1:]
    names = {name.removeprefix(PREFIX) for name in metric_names()}
    assert {name for name in names if not name.endswith(tuple(f"_{share}" for share in last))} | set(last) <= explained


def test_the_table_of_performance_is_that_of_the_csv(monkeypatch) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", 0)  # which the script sets
    spec = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = pd.read_csv(ROOT / "results" / "bench.csv")
    assert with_table(page, "results/bench.csv", bench.table(rows)) == page
