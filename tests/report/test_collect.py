# SPDX-License-Identifier: Apache-2.0
"""Reading runs: broken, several, repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import cached_plan
from made_runs import make_run, read, seeded, spoil, write_record
from omegaconf import OmegaConf

from cw_grpo.report.collect import read_runs, seeds
from cw_grpo.report.provenance import differing_settings
from cw_grpo.report.token_frames import pooled, quadrants
from cw_grpo.run_config import method_of


@pytest.mark.parametrize(("applied", "applies"), [("estimator", True), ("loss", True), ("none", False)])
def test_whether_weights_were_applied_is_what_the_records_say_whatever_the_runs_name(
    tmp_path, applied, applies
) -> None:
    run = make_run(tmp_path / "run", 3, "grpo" if applies else "cw_grpo")
    write_record(tmp_path / "run" / "record", 1, 3, applied=applied)
    assert read(f"mine={run}").applies_weights is applies


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        *((f"method={name}", name) for name in ("cw_grpo", "cw_grpo_live", "cw_grpo_released", "grpo", "clip_cov")),
        ("method=cw_grpo actor_rollout_ref.actor.policy_loss.loss_mode=cw_grpo_released", "cw_grpo_released"),
        ("method=cw_grpo +algorithm.cw_grpo.log_prob_mean=group", "cw_grpo-group"),
        ("method=cw_grpo +algorithm.cw_grpo.centre=true", "cw_grpo-centred"),
        ("method=grpo algorithm.adv_estimator=rloo", "rloo"),
        ("method=kl_cov algorithm.adv_estimator=rloo", "rloo+kl_cov"),
    ],
)
def test_a_run_is_called_by_what_its_config_asks_for(overrides: str, method: str) -> None:
    config = cached_plan("scale=tiny", "cluster=cpu", *overrides.split()).config
    assert method_of(OmegaConf.create(OmegaConf.to_container(config, resolve=True))) == method


def test_metrics_files_without_a_config_are_not_pooled(tmp_path) -> None:
    files = [Path(make_run(tmp_path / name, 12), "metrics/attempt-001.jsonl") for name in "ab"]
    for file in files:
        (file.parents[1] / "config.yaml").unlink()
    assert [run.method for run in read_runs(list(map(str, files)))[0]] == list(map(str, files))


def test_recorded_tokens_are_found_where_the_config_has_them_written(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 12, record=True))
    (run / "record").rename(tmp_path / "elsewhere")
    (run / "config.yaml").write_text(f"algorithm: {{adv_estimator: grpo, cw_grpo: {{record: {tmp_path}/elsewhere}}}}\n")
    assert len(read(run).record_files) == 12
    (tmp_path / "elsewhere").rename(run / "metrics/record")  # beside a file of metrics
    assert len(read(run / "metrics/attempt-001.jsonl").record_files) == 12


def test_validations_apart_are_no_steps(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 12))
    file = run / "metrics/attempt-001.jsonl"
    file.write_text('{"step": 0, "data": {"val-core/math500/acc/mean@4": 0.5}}\n' + file.read_text())
    assert len(read(run).metrics) == 12


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "1e400", "1" + "0" * 400, "1e300", "NaN", "null", '"x"'])
def test_a_value_that_is_not_finite_is_a_gap_and_named(tmp_path, value: str) -> None:
    run = Path(make_run(tmp_path / "run", 12))
    spoil(run, 5, "actor/entropy", value)
    found = read(run)
    assert found.metrics["actor/entropy"].isna().tolist() == [step == 5 for step in range(1, 13)]
    said = [f"{run}: actor/entropy is not finite at step 5; skipped there"]
    assert found.skipped == ([] if value in ("NaN", "null", '"x"') else said)


@pytest.mark.parametrize("column", ["old_log_prob", "advantage", "covariance", "weight", "reward"])
def test_a_recorded_token_that_is_not_finite_is_left_out_and_its_file_named(tmp_path, column: str) -> None:
    run = Path(make_run(tmp_path / "run", 6, record=True))
    file = run / "record/step-000003.parquet"
    table = pq.read_table(file)
    values = table[column].to_numpy().copy()
    values[[1, 4]] = np.inf, np.nan
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), file)
    found = read(run)
    assert found.skipped == [f"{file}: 2 of {len(table)} tokens have a value that is not finite"]
    assert np.isfinite(quadrants(pooled([found]))[["mean weight", "kept"]]).all(axis=None)


@pytest.mark.parametrize(
    "config", ["- 1", "algorithm: [1]", "actor_rollout_ref: {actor: x}", "a: ${b}", "algorithm: {adv_estimator: ${x}}",
               "{", "\x00", "data: {seed: [1, 2]}", "algorithm: {adv_estimator: [1]}"],
)  # fmt: skip
def test_a_broken_config_does_not_take_the_report_away(tmp_path, config: str) -> None:
    good, bad = (make_run(tmp_path / name, 3, "grpo") for name in ("good", "bad"))
    Path(bad, "config.yaml").write_text(config)
    found, _ = read_runs([good, bad])
    assert len(seeds(found)) == 2 and len(differing_settings(found)) < 100 and found[1].method


def test_the_experiments_of_a_project_are_several_runs(tmp_path, monkeypatch) -> None:
    from verl.utils.tracking import FileLogger

    monkeypatch.setenv("VERL_FILE_LOGGER_ROOT", str(tmp_path))
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    for experiment, entropy in (("one", 0.25), ("two", 0.75)):
        logger = FileLogger("project", experiment)
        for step in (1, 2, 3):
            logger.log({"actor/entropy": entropy, "training/global_step": step}, step)
        logger.finish()
    (tmp_path / "project/config.yaml").write_text("algorithm: {adv_estimator: cw_grpo}\n")  # of which of the two?
    found, _ = read_runs([str(tmp_path / "project")])
    assert {Path(run.method).name: run.metrics["actor/entropy"].tolist() for run in found} == {
        "one.jsonl": [0.25] * 3,
        "two.jsonl": [0.75] * 3,
    }
    [one], _ = read_runs([str(tmp_path / "project/one.jsonl")])
    assert not one.config


@pytest.mark.parametrize("missing", ["outputs/lr=1e-6", "lr=1e-6", "grpo=outputs/none", "outputs/none"])
def test_a_path_that_is_missing_is_named_as_it_was_given(tmp_path, missing: str) -> None:
    _, skipped = read_runs([make_run(tmp_path / "run", 3), missing])
    assert skipped == [f"{missing}: there is no such file or directory"]


@pytest.mark.parametrize(("seed", "count"), [("null", 2), ("1", 1), ('"${number}"', 1)])
def test_a_seed_that_is_not_known_is_its_own(tmp_path, seed: str, count: int) -> None:
    runs = [seeded(tmp_path / name, seed, 0, number) for number, name in enumerate("ab")]
    for run in runs:
        with Path(run, "config.yaml").open("a") as file:
            file.write("number: 5\n")
    assert len(seeds(read_runs(runs)[0])) == count


def test_a_metrics_file_of_a_run_is_named_by_the_runs_config(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 3, "cw_grpo"))
    for path in ("run/metrics", "run/metrics/attempt-001.jsonl", "run"):
        assert (read(tmp_path / path).method, read(tmp_path / path).name) == ("cw_grpo", run.name), path
    assert read(f"mine={run}").method == "mine"


def test_both_names_of_the_share_without_signal_are_read(tmp_path) -> None:
    run = make_run(tmp_path / "run", 5, "grpo", **{"actor/cw_grpo/no_signal": 0.5})
    assert read(run).metrics["actor/cw_grpo/zero_sigma_fraction"].tolist() == [0.5] * 5
