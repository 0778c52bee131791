# SPDX-License-Identifier: Apache-2.0
"""`scripts/study.py` on made-up results: which runs there are, and what of them is reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study
import study_results
import study_runs
from made_scores import evaluation
from pages import with_table
from study_runs import ENTROPY, REWARD, Run, choosing, measuring

from cw_grpo.job.plan import make_plan
from cw_grpo.run_config import method_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch) -> Path:
    """Directories of the test's own."""
    monkeypatch.setattr(study_runs, "RESULTS", tmp_path)
    monkeypatch.setattr(study_runs, "OUTPUTS", tmp_path / "outputs")
    return tmp_path


@pytest.fixture
def plan() -> dict:
    return study_runs.read_plan()


def finish(runs: Iterable[Run], reward: Callable[[Run], float]) -> None:
    """Keep metrics of runs: a reward that grows to ``reward(run)``, an entropy that falls."""
    steps = pd.RangeIndex(1, 21)
    for run in runs:
        run.keep_metrics(
            pd.DataFrame({REWARD: 0.5 + (reward(run) - 0.5) * steps / 20, ENTROPY: 0.2 - 0.005 * steps}, index=steps)
        )


def test_every_kind_of_run_composes_as_the_method_it_is_called(plan) -> None:
    finish(choosing(plan), lambda run: 0.8)
    runs = [*choosing(plan), *measuring(plan)]
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


def test_the_rate_is_that_of_the_largest_area_and_only_of_complete_methods(plan) -> None:
    runs = choosing(plan)
    finish([run for run in runs if run.method == "grpo"], lambda run: 0.9 if run.rate == 3e-4 else 0.6)
    finish([run for run in runs if run.method == "cw_grpo"][:-1], lambda run: 0.9)
    assert study_runs.best_rates(plan) == {"grpo": 3e-4}
    rates = {run.method: run.rate for run in measuring(plan)}
    assert rates["grpo"] == 3e-4 and rates["slow_grpo"] == 7.5e-5 and "cw_grpo" not in rates


def test_the_tables_of_the_best_rates_have_intervals_over_seeds_and_paired_differences(plan) -> None:
    finish(choosing(plan), lambda run: 0.8)
    assert study_results.tables(plan)["results/study, best rates"].count("\n") == 1  # header alone
    finish(measuring(plan), lambda run: 0.5 + 0.01 * run.seed + 0.2 * (run.method == "cw_grpo"))
    for run in measuring(plan):
        if (run.method, run.seed) != ("cw_grpo", 15):
            gain = 0.1 * (run.method == "cw_grpo")
            run.keep_accuracy({"step": 40, "pass@1": 0.5 + 0.01 * run.seed + gain, "pass@8": 0.9})
    levels, differences = (study_results.tables(plan)[f"results/study, {of}"] for of in ("best rates", "differences"))
    cells = {
        row.split(" | ")[0].removeprefix("| "): dict(zip(study_results.COLUMNS, row.split(" | ")[1:], strict=True))
        for row in (*levels.splitlines(), *differences.splitlines())
        if "---" not in row
    }
    # The middle of the last 8 of 20 steps is 16.5. Seeds 11 to 15: 2.776 standard errors of (-2, -1, 0, 1, 2).
    half = 2.776 * np.sqrt(2.5 / 5)
    reward, width = 0.5 + 0.13 * 16.5 / 20, 0.01 * half * 16.5 / 20
    assert cells["grpo, 0.0003, 5"]["last reward"] == f"{reward:.3f} ± {width:.3f}".replace("0.", ".")
    assert cells["grpo, 0.0003, 5"]["pass@1"] == f".630 ± {0.01 * half:.3f}".replace("0.", ".")
    # Each seed's own share cancels.
    assert cells["cw_grpo less grpo"]["last reward"] == "**+.165 ± .000**"
    assert cells["cw_grpo less grpo"]["pass@1"] == "**+.100 ± .000** (4)"
    assert cells["cw_grpo less grpo"]["last entropy"] == "+.000 ± .000"
    assert {"off_policy_kl_cov less off_policy_grpo", "cw_grpo less slow_grpo"} <= set(
        cells
    ) and "grpo less grpo" not in cells


def test_the_picture_has_the_fresh_seeds_of_the_runs_with_one_update(plan, tmp_path) -> None:
    finish(choosing(plan), lambda run: 0.8 if run.rate == 3e-4 else 0.6)
    study_results.draw(plan, tmp_path / "study.png")
    assert not (tmp_path / "study.png").exists()
    finish(measuring(plan), lambda run: 0.7)
    paths = study_results.fresh_paths(plan)
    assert {method: len(of) for method, of in paths.items()} == {
        method: 5 for method in [*plan["methods"], "slow_grpo"]
    }
    # Not those that chose the rate. The last point is the mean of steps 19 and 20.
    assert all(path["reward"].iloc[-1] == pytest.approx(0.695) for of in paths.values() for path in of)
    study_results.draw(plan, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_evaluation_of_the_best_checkpoint_leaves_is_read(plan) -> None:
    """In the form of `cw-grpo eval`'s scores, which tests/evaluation compares with numbers by hand."""
    run = choosing(plan)[0]
    result = evaluation("grpo", 80, "sums", [[1.0] * 8, [0.0] * 8]) | {
        "pass@1": {"mean": 0.25},
        "pass@K": {"mean": 0.75},
    }
    path = run.directory / "evaluation" / "grpo@80" / "sums.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))
    run.keep_accuracy(study.read_accuracy(80, run.directory / "evaluation"))
    assert run.accuracy == {"step": 80, "pass@1": 0.25, "pass@8": 0.75}


def test_the_tables_of_the_page_are_those_of_the_finished_runs(plan, monkeypatch) -> None:
    monkeypatch.setattr(study_runs, "RESULTS", ROOT / "results" / "study")
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for name, table in study_results.tables(plan).items():
        assert with_table(page, name, table) == page


def test_the_table_of_the_runs_so_far_has_means_over_steps_and_over_seeds(plan, monkeypatch) -> None:
    monkeypatch.setattr(study_results, "STEPS", (3, 7, 240))
    first, second = (run for run in choosing(plan) if (run.method, run.rate) == ("grpo", 3e-4) and run.seed < 3)
    finish([first], lambda run: 0.9)
    finish([second], lambda run: 0.7)
    assert study_results.progress_table(plan).splitlines() == [
        "| method, rate, seeds |  | step 3 | 7 | 240 |",
        "|---|---|---|---|---|",
        "| grpo, 0.0003, 2 | reward | .530 | .560 |  |",
        "|  | entropy | .190 | .180 |  |",
    ]


def test_a_collapse_is_a_fall_by_a_third_that_stays() -> None:
    assert study_results.collapses(pd.Series([0.5] * 10 + [0.9] * 10 + [0.5] * 20))
    assert not study_results.collapses(pd.Series([0.9] * 10 + [0.5] * 10 + [0.9] * 20))


def test_the_best_checkpoint_is_that_of_the_largest_reward_over_8_steps(plan) -> None:
    run = choosing(plan)[0]
    reward = pd.Series([0.1] * 40 + [0.9] * 39 + [0.2] + [0.5] * 40, index=range(1, 121))
    with pytest.raises(FileNotFoundError, match=f"{run.name}: no checkpoint in .*finished elsewhere"):
        study.best_checkpoint(run, reward)
    for step in (40, 80, 120):
        (run.directory / "checkpoints" / f"global_step_{step}" / "actor").mkdir(parents=True)
    assert study.best_checkpoint(run, reward) == 80
