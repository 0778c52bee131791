# SPDX-License-Identifier: Apache-2.0
"""`scripts/study.py` on made-up results: which runs there are, and what of them is reported."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_scores import evaluation
from pages import with_table

from cw_grpo.job.plan import make_plan
from cw_grpo.run_config import method_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """The script, with results of its own."""
    spec = importlib.util.spec_from_file_location("study", ROOT / "scripts" / "study.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)  # where a dataclass looks for its own module
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    return module


@pytest.fixture
def plan(study) -> dict:
    return yaml.safe_load(study.PLAN.read_text())


def finish(study, runs, reward) -> None:
    """Write the metrics of runs: a reward that grows to ``reward(run)``, an entropy that falls."""
    for run in runs:
        rows = [
            {"step": step, study.REWARD: 0.5 + (reward(run) - 0.5) * step / 20, study.ENTROPY: 0.2 - 0.005 * step}
            for step in range(1, 21)
        ]
        (study.RESULTS / f"{run.name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_every_kind_of_run_composes_as_the_method_it_is_called(study, plan) -> None:
    finish(study, study.choosing(plan), lambda run: 0.8)
    runs = [*study.choosing(plan), *study.measuring(plan)]
    assert len({run.name for run in runs}) == len(runs)
    overrides = {run.method: run.overrides for run in runs}
    assert {method: method_of(make_plan(["cluster=cpu", *of]).config) for method, of in overrides.items()} == {
        "grpo": "grpo",
        "cw_grpo": "cw_grpo",
        "cw_grpo_centred": "cw_grpo-centred",
        "clip_cov": "clip_cov",
        "entropy_bonus": "grpo",
        "slow_grpo": "grpo",
        "off_policy_grpo": "grpo",
        "off_policy_clip_cov": "clip_cov",
        "off_policy_kl_cov": "kl_cov",
    }


def test_the_rate_is_that_of_the_largest_area_and_only_of_complete_methods(study, plan) -> None:
    runs = study.choosing(plan)
    finish(study, [run for run in runs if run.method == "grpo"], lambda run: 0.9 if run.rate == 3e-4 else 0.6)
    finish(study, [run for run in runs if run.method == "cw_grpo"][:-1], lambda run: 0.9)
    assert study.best_rates(plan) == {"grpo": 3e-4}
    rates = {run.method: run.rate for run in study.measuring(plan)}
    assert rates["grpo"] == 3e-4 and rates["slow_grpo"] == 1.5e-4 and "cw_grpo" not in rates


def test_the_table_has_paired_differences(study, plan, capsys) -> None:
    finish(study, study.choosing(plan), lambda run: 0.8)
    study.table()
    assert "best rates" in capsys.readouterr().out
    finish(study, study.measuring(plan), lambda run: 0.5 + 0.01 * run.seed / 15 + 0.4 * (run.method == "cw_grpo"))
    for run in study.measuring(plan):
        accuracy = {"step": 40, "pass@1": 0.5 + 0.01 * run.seed + 0.1 * (run.method == "cw_grpo"), "pass@8": 0.9}
        (study.RESULTS / f"{run.name}.json").write_text(json.dumps(accuracy))
    study.table()
    lines = capsys.readouterr().out.splitlines()
    of = lines.index("cw_grpo (5 seeds)")
    # Each seed's own share cancels. The middle of the last 8 of 20 steps is 16.5: 0.4 * 16.5 / 20.
    assert "last reward" in lines[of + 2] and "less grpo's: +0.330 (+0.330, +0.330)" in lines[of + 2]
    assert any("pass@1" in line and "less grpo's: +0.100 (+0.100, +0.100)" in line for line in lines[of : of + 10])


def test_what_the_evaluation_of_the_best_checkpoint_leaves_is_read(study, plan) -> None:
    """In the form of `cw-grpo eval`'s scores, which tests/evaluation compares with numbers by hand."""
    run = study.choosing(plan)[0]
    result = evaluation("grpo", 80, "sums", [[1.0] * 8, [0.0] * 8]) | {
        "pass@1": {"mean": 0.25},
        "pass@K": {"mean": 0.75},
    }
    path = run.directory / "evaluation" / "grpo@80" / "sums.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))
    study.keep_accuracy(run, 80, run.directory / "evaluation")
    assert run.accuracy == {"step": 80, "pass@1": 0.25, "pass@8": 0.75}


def test_the_table_of_the_page_is_that_of_the_finished_runs(study, plan, monkeypatch) -> None:
    monkeypatch.setattr(study, "RESULTS", ROOT / "results" / "study")
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert with_table(page, "results/study", study.progress_table(plan)) == page


def test_the_table_of_the_runs_so_far_has_means_over_steps_and_over_seeds(study, plan, monkeypatch) -> None:
    monkeypatch.setattr(study, "STEPS", (3, 7, 240))
    first, second = (run for run in study.choosing(plan) if (run.method, run.rate) == ("grpo", 3e-4) and run.seed < 3)
    finish(study, [first], lambda run: 0.9)
    finish(study, [second], lambda run: 0.7)
    assert study.progress_table(plan).splitlines() == [
        "| method, rate, seeds | | step 3 | 7 | 240 |",
        "|---|---|---|---|---|",
        "| grpo, 0.0003, 2 | reward | .530 | .560 |  |",
        "|  | entropy | .190 | .180 |  |",
    ]


def test_a_collapse_is_a_fall_by_a_third_that_stays(study) -> None:
    assert study.collapses(pd.Series([0.5] * 10 + [0.9] * 10 + [0.5] * 20))
    assert not study.collapses(pd.Series([0.9] * 10 + [0.5] * 10 + [0.9] * 20))


def test_the_best_checkpoint_is_that_of_the_largest_reward_over_8_steps(study, plan) -> None:
    run = study.choosing(plan)[0]
    reward = pd.Series([0.1] * 40 + [0.9] * 39 + [0.2] + [0.5] * 40, index=range(1, 121))
    with pytest.raises(FileNotFoundError, match=f"{run.name}: no checkpoint in .*finished elsewhere"):
        study.best_checkpoint(run, reward)
    for step in (40, 80, 120):
        (run.directory / "checkpoints" / f"global_step_{step}" / "actor").mkdir(parents=True)
    assert study.best_checkpoint(run, reward) == 80
