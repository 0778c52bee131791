"""The report: what it says of runs with records, and of runs that lack something."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from datetime import datetime, timedelta
from html import unescape
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_runs import make_run, write_record
from matplotlib.colors import to_rgb
from omegaconf import OmegaConf
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.job.launch import make_plan
from cw_grpo.report import build
from cw_grpo.report.collect import Run, read_runs, seeds
from cw_grpo.report.figures import COLOURS, colours_of
from cw_grpo.report.provenance import differing_settings
from cw_grpo.report.token_frames import entropy_fits, pass_rates, pooled, quadrants
from cw_grpo.report.tokens import most_attenuated, most_attenuated_section
from cw_grpo.runs import load_metrics, method_of

PANELS = ("entropy", "reward", "length", "kept_positive", "kept_negative", "effective_tokens", "zero_sigma",
          "grad_norm", "lr")  # fmt: skip
PICTURES = {f"curves_{name}" for name in PANELS} | {"entropy_reward", "covariance", "theory"}


def read(argument: str | Path) -> Run:
    """The one run of an argument."""
    [run], _ = read_runs([str(argument)])
    return run


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A report of two methods, with three seeds and with two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / f"{method}-{seed}", 30, method, seed, record=True)
        for method, seeds in (("grpo", (1, 2, 3)), ("cw_grpo", (1, 2)))
        for seed in seeds
    ]
    return build(runs, folder / "out")


def test_every_part_has_its_picture_and_table(full: Path) -> None:
    html = full.read_text()
    assert {path.stem for path in full.parent.glob("*.png")} == PICTURES
    tables = {path.stem for path in full.parent.glob("*.csv")}
    assert tables >= {"summary", "curves", "entropy_at_equal_reward", "covariance", "quadrants", "pass_rates", "theory"}
    assert html.count("data:image/png;base64,") == len(PICTURES)
    summary = pd.read_csv(full.parent / "summary.csv")
    assert summary.method.tolist() == ["grpo", "cw_grpo"] and summary.seeds.tolist() == [3, 2]
    # Rewards rise evenly to 1: the last tenth of 30 steps has the mean of 28/30, 29/30 and 1.
    assert summary["reward, last"].str.startswith("0.967").all()


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(full: Path) -> None:
    html = full.read_text()
    links = re.findall(r'href="([^"]*)"', html)
    ids = set(re.findall(r'id="([^"]*)"', html))
    inside = {link.removeprefix("#") for link in links if link.startswith("#")}
    files = {link for link in links if not link.startswith(("#", "data:"))}
    assert inside == ids and len(ids) == html.count("<section")
    assert files == {path.name for path in full.parent.iterdir()} - {"report.html"}
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', html))


def test_the_page_says_what_made_it_when_and_of_what(full: Path) -> None:
    html = full.read_text()
    assert "<title>CW-GRPO report: grpo, cw_grpo</title>" in html
    arguments = shlex.split(unescape(re.search(r"<code>(cw-grpo report .*?)</code>", html)[1]))
    folder = full.parents[1]
    assert arguments[2:5] == [str(folder / f"grpo-{seed}") for seed in (1, 2, 3)]
    assert arguments[-2:] == ["--out", str(full.parent)]
    made = datetime.fromisoformat(re.search(r"Made (\S+ \S+) in", html)[1])
    assert abs(datetime.now().astimezone() - made) < timedelta(hours=1)
    runs = pd.read_csv(full.parent / "runs.csv").set_index("run")
    assert runs.loc["grpo-2", "path"] == str(folder / "grpo-2")
    assert datetime.fromisoformat(runs.loc["grpo-2", "last written"]).tzinfo is not None


def test_intervals_from_three_seeds_on(full: Path) -> None:
    summary = pd.read_csv(full.parent / "summary.csv").set_index("method")
    assert " to " in summary.loc["grpo", "entropy, last"] and " to " not in summary.loc["cw_grpo", "entropy, last"]
    curves = pd.read_csv(full.parent / "curves.csv")
    entropy = curves[curves["metric"] == "actor/entropy"].groupby("method")[["mean", "low", "high"]].count()
    assert entropy.loc["grpo"].tolist() == [30, 30, 30] and entropy.loc["cw_grpo"].tolist() == [30, 0, 0]


def test_a_curve_is_the_mean_of_the_seeds_moving_averages(full: Path) -> None:
    curves = pd.read_csv(full.parent / "curves.csv")
    means = curves[(curves["metric"] == "actor/entropy") & (curves["method"] == "cw_grpo")].set_index("step")["mean"]
    raw = [load_metrics(full.parents[1] / f"cw_grpo-{seed}")["actor/entropy"] for seed in (1, 2)]
    # 30 steps: a window of three, of which two are there at the ends.
    assert means[1] == pytest.approx(np.mean([values[[1, 2]].mean() for values in raw]))
    assert means[17] == pytest.approx(np.mean([values[[16, 17, 18]].mean() for values in raw]))
    assert "Moving averages are over 3 steps" in full.read_text()


def test_entropy_at_equal_reward_is_that_of_the_step_that_reaches_it(full: Path) -> None:
    table = pd.read_csv(full.parent / "entropy_at_equal_reward.csv")
    entropy = table["grpo"].str.split().str[0].astype(float)
    assert (table["reward"].diff().dropna() > 0).all() and (entropy.diff().dropna() <= 0).all()


def test_the_quadrants_share_all_tokens_with_an_advantage(full: Path) -> None:
    table = pd.read_csv(full.parent / "quadrants.csv")
    for _, part in table.groupby("method"):
        assert part["share of tokens"].sum() == pytest.approx(1)
        assert (part["mean weight"] * part["share of tokens"]).sum() == pytest.approx(1, abs=0.1)


def test_what_is_kept_by_pass_rate_by_hand() -> None:
    records = pd.DataFrame(
        {
            "run": 0, "step": 1, "group": "g", "response": [0, 1, 2, 3, 4], "reward": [1.0, 0.0, 0.0, 0.0, 0.0],
            "advantage": [4.0, -1.0, -1.0, -1.0, -1.0], "weight": [0.5, 1.0, 1.0, 1.0, 2.0],
        }
    )  # fmt: skip
    [row] = pass_rates(records).to_dict("records")
    assert row["pass rate"] == "0 to 0.25" and row["share of tokens"] == 1
    assert row["kept, positive advantage"] == 0.5 and row["kept, negative advantage"] == 1.25


@pytest.mark.parametrize(("applied", "applies"), [("estimator", True), ("loss", True), ("none", False)])
def test_whether_weights_were_applied_is_what_the_records_say_whatever_the_runs_name(
    tmp_path, applied, applies
) -> None:
    run = make_run(tmp_path / "run", 3, "grpo" if applies else "cw_grpo")
    write_record(tmp_path / "run" / "record", 1, 3, applied=applied)
    assert read(f"mine={run}").applies_weights is applies


def test_without_a_tokenizer_token_ids_are_shown(tmp_path) -> None:
    html, problem = most_attenuated(write_record(tmp_path, 1, 3))
    assert problem is not None
    assert "token ids are shown" in problem and "/no/such/model" in problem
    assert re.search(r"\[\d+\]", html)


def test_what_a_model_wrote_is_text(tmp_path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<script>{i}</script>\x07": i for i in range(2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    html, problem = most_attenuated(write_record(tmp_path / "record", 1, 3, str(tmp_path / "model")))
    assert problem is None and "<script>" not in html and "\x07" not in html
    assert "&lt;script&gt;" in html and "\\x07" in html


def test_what_is_missing_is_said_and_names_are_escaped(tmp_path) -> None:
    short = make_run(tmp_path / "a", 20)
    long = make_run(tmp_path / "b", 30)
    with (tmp_path / "a/metrics/attempt-001.jsonl").open("a") as file:
        file.write('{"step":')
    (tmp_path / "b/record").mkdir()
    (tmp_path / "b/record/step-000001.parquet").write_bytes(b"corrupt")
    (tmp_path / "b/config.yaml").unlink()
    html = build([short, "<script>x=" + long, str(tmp_path / "none")], tmp_path / "out").read_text()
    for line in (
        "cut off and skipped",
        "differ in their number of steps",
        "none: there is no such file or directory",
        "step-000001.parquet cannot be read",
        "No run has actor/kl_loss in its metrics",
        "configuration of",
    ):
        assert line in html
    assert "<script>" not in html and "&lt;script&gt;x" in html


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        *((f"method={name}", name) for name in ("cw_grpo", "cw_grpo_live", "cw_grpo_released", "grpo", "clip_cov")),
        ("method=cw_grpo actor_rollout_ref.actor.policy_loss.loss_mode=cw_grpo_released", "cw_grpo_released"),
        ("method=cw_grpo +algorithm.cw_grpo.log_prob_mean=group", "cw_grpo-group"),
        ("method=grpo algorithm.adv_estimator=rloo", "rloo"),
        ("method=kl_cov algorithm.adv_estimator=rloo", "rloo+kl_cov"),
    ],
)
def test_a_run_is_called_by_what_its_config_asks_for(overrides: str, method: str) -> None:
    config = make_plan(["scale=tiny", "cluster=cpu", *overrides.split()]).config
    assert method_of(OmegaConf.create(OmegaConf.to_container(config, resolve=True))) == method


def test_runs_of_the_same_name_are_kept_apart_and_what_differs_is_said(tmp_path) -> None:
    runs = [make_run(tmp_path / home / "tiny-grpo", 12, "grpo", seed) for seed, home in enumerate("ab")]
    for run, rate in zip(runs, (1, 2), strict=True):
        Path(run, "config.yaml").write_text(f"algorithm: {{adv_estimator: grpo}}\ndata: {{seed: {rate}}}\nlr: {rate}\n")
    html = build([*runs, runs[0]], tmp_path / "out").read_text()
    assert "grpo: its runs are shown as seeds of one method, and differ in lr.<" in html
    assert "named twice, and read once" in html
    differences = pd.read_csv(tmp_path / "out/differences.csv").set_index("setting")
    assert set(differences.columns) == set(runs) and differences.loc["lr"].tolist() == [1, 2]
    assert pd.read_csv(tmp_path / "out/runs.csv")["run"].tolist() == runs


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


def test_a_last_step_without_advantages_is_passed_over(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 3, record=True))
    last = run / "record/step-000003.parquet"
    table = pq.read_table(last)
    zeros = pa.array(np.zeros(len(table)), table.schema.field("advantage").type)
    place = table.schema.get_field_index("advantage")
    pq.write_table(table.set_column(place, table.schema.field(place), zeros), last)
    [(_, _, caption)] = most_attenuated_section({"cw_grpo": [read(run)]}).tables
    assert caption == "run, step-000002"


def test_validations_apart_are_no_steps(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 12))
    file = run / "metrics/attempt-001.jsonl"
    file.write_text('{"step": 0, "data": {"val-core/math500/acc/mean@4": 0.5}}\n' + file.read_text())
    assert len(read(run).metrics) == 12


def test_nan_values_leave_gaps(tmp_path) -> None:
    run = Path(make_run(tmp_path / "a", 12))
    file = run / "metrics/attempt-001.jsonl"
    file.write_text(re.sub(r'"critic/score/mean": 0\.[0-9]+', '"critic/score/mean": NaN', file.read_text(), count=3))
    build([str(run)], tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out/summary.csv")
    assert summary["reward, last"].astype(float).item() == pytest.approx(1)


def test_no_run_at_all(tmp_path) -> None:
    with pytest.raises(ValueError, match="no run can be read: no metrics in .*neither .*attempt-.*nor .*tfevents"):
        build([str(tmp_path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- several runs, broken runs, repeated runs -----------------------------------------------------------------------


def spoil(run: Path, step: int, metric: str, value: str) -> None:
    """Write another value of a metric into a run's file."""
    file = run / "metrics/attempt-001.jsonl"
    lines = file.read_text().splitlines()
    lines[step - 1] = re.sub(rf'"{metric}": [-+.e0-9]+', f'"{metric}": {value}', lines[step - 1])
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "1e400", "1" + "0" * 400, "1e300", "NaN", "null", '"x"'])
def test_a_value_that_is_not_finite_is_a_gap_and_named(tmp_path, value: str) -> None:
    run = Path(make_run(tmp_path / "run", 12))
    spoil(run, 5, "actor/entropy", value)
    found = read(run)
    assert found.metrics["actor/entropy"].isna().tolist() == [step == 5 for step in range(1, 13)]
    said = [f"{run}: actor/entropy is not finite at step 5; skipped there"]
    assert found.skipped == ([] if value in ("NaN", "null", '"x"') else said)


def test_infinities_in_one_run_leave_the_report_and_the_other_runs(tmp_path, caplog) -> None:
    good, bad = (Path(make_run(tmp_path / name, 12, "grpo", record=True)) for name in ("good", "bad"))
    metrics = ["actor/entropy", "critic/score/mean", "actor/lr", "response_length/mean", "timing_s/step"]
    for step, metric in enumerate(metrics, start=1):
        spoil(bad, step, metric, "Infinity")
    html = build([f"a={good}", f"b={bad}"], tmp_path / "out").read_text()
    assert pd.read_csv(tmp_path / "out/summary.csv")["method"].tolist() == ["a", "b"]
    assert np.isfinite(pd.read_csv(tmp_path / "out/curves.csv")["mean"]).all()
    for step, metric in enumerate(metrics, start=1):
        said = f"Skipped: {bad}: {metric} is not finite at step {step}; skipped there"
        assert said in html and said in caplog.text


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


def test_a_directory_of_runs_says_how_to_name_them(tmp_path) -> None:
    for name in "abcd":
        make_run(tmp_path / "runs" / name, 3)
    with pytest.raises(
        ValueError, match=r"runs is not a run; it holds runs \(a, b, c, ...\): name them with .*runs/\*"
    ):
        build([str(tmp_path / "runs")], tmp_path / "out")


def test_what_is_skipped_is_said_on_the_terminal(tmp_path) -> None:
    run = make_run(tmp_path / "a", 5)
    result = CliRunner().invoke(app, ["report", run, str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert f"Skipped: {tmp_path / 'none'}: there is no such file or directory" in result.output
    assert str(tmp_path / "out/report.html") in result.output


def seeded(folder: Path, data: object, rollout: object, number: int) -> str:
    run = make_run(folder, 12, "grpo", number)
    Path(run, "config.yaml").write_text(
        f"data: {{seed: {data}}}\nactor_rollout_ref: {{rollout: {{seed: {rollout}}}}}\n"
    )
    return run


def test_two_runs_of_one_seed_are_a_repeat(tmp_path, caplog) -> None:
    of_runs = {"a": (1, 0), "b": (1, 0), "c": (2, 0), "d": (2, 1)}
    runs = [seeded(tmp_path / name, *seed, number) for number, (name, seed) in enumerate(of_runs.items())]
    build(runs, tmp_path / "out")
    [row] = pd.read_csv(tmp_path / "out/summary.csv").to_dict("records")
    assert (row["seeds"], row["runs"]) == (3, 4)
    assert "grpo: a and b have the same seeds, and count as one seed, repeated" in caplog.text
    last = [load_metrics(run)["actor/entropy"].iloc[-1] for run in runs]
    assert row["entropy, last"].startswith(f"{np.mean([np.mean(last[:2]), *last[2:]]):.3f} (")


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


# --- pictures -------------------------------------------------------------------------------------------------------


def lab(colour: str) -> np.ndarray:
    """CIE L*a*b* of a colour (IEC 61966-2-1, D65)."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("methods", [list(COLOURS), ["grpo", "mine", "yours", "cw_grpo", "theirs"]])
def test_no_two_methods_have_colours_that_are_hard_to_tell_apart(methods: list[str]) -> None:
    colours = colours_of(methods)
    for a, b in combinations(methods, 2):
        assert np.linalg.norm(lab(colours[a]) - lab(colours[b])) > 50, (a, b)


def test_no_line_goes_through_two_points() -> None:
    points = pd.DataFrame(
        {"method": list("aabbb"), "predicted": [1.0, 2.0, 1.0, 2.0, 3.0], "change": [0, 1, 2, 4, 6.0]}
    )
    [fit] = entropy_fits(points).to_dict("records")
    assert fit["method"] == "b" and fit["slope"] == pytest.approx(2) and fit["R^2"] == pytest.approx(1)


def test_the_text_promises_what_is_drawn(full: Path, tmp_path) -> None:
    one = build([make_run(tmp_path / "run", 5, "grpo")], tmp_path / "one").read_text()
    assert "its 95% t interval" not in one and "95%" not in one and "several" not in one
    assert not list((tmp_path / "one").glob("curves_kept*")) and "Not shown: kept of positive advantages" in one
    assert "its 95% t interval as a band from 3 seeds on" in full.read_text()
    assert "actor/cw_grpo/kept_positive; not in the metrics of grpo" in full.read_text()


def test_every_picture_is_a_panel_that_a_phone_shows(full: Path) -> None:
    """A line of text in a picture of 768 pixels, shown 358 wide, is 11 pixels high."""
    from matplotlib import image

    for file in full.parent.glob("*.png"):
        height, width, _ = image.imread(file).shape
        assert width == pytest.approx(768, abs=1) and height < width, file


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Posts what the page looks like from inside; the parent, whose width is the frame's, writes it down.
PROBE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  scroll: document.scrollingElement.scrollWidth, width: innerWidth,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
  images: document.images.length}), "*"))
</script>"""
PARENT = """<body><iframe src="page.html" width="{}" height="900" style="border:0"></iframe>
<script>onmessage = e => document.body.textContent = "SEEN" + e.data</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_overflows_and_every_image_loads(full: Path, tmp_path, width: int) -> None:
    (tmp_path / "page.html").write_text(full.read_text() + PROBE)
    (tmp_path / "parent.html").write_text(PARENT.format(width))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,1000",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
         (tmp_path / "parent.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "SEEN" in done.stdout, done.stderr[-2000:]
    seen = json.loads(re.search(r"SEEN(\{.*?\})", done.stdout).group(1))
    assert seen["width"] == width and seen["scroll"] <= width
    assert seen["images"] == len(PICTURES) and seen["broken"] == 0
    assert "CONSOLE" not in done.stderr
