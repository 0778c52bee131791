# SPDX-License-Identifier: Apache-2.0
"""The report: what it says of runs with records, and of runs that lack something."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from datetime import datetime, timedelta
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import make_run, seeded, spoil
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.report import build
from cw_grpo.runs import load_metrics

PANELS = ("entropy", "reward", "length", "kept_positive", "kept_negative", "effective_tokens", "zero_sigma",
          "grad_norm", "lr")  # fmt: skip
PICTURES = {f"curves_{name}" for name in PANELS} | {"entropy_reward", "covariance", "theory"}


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


def test_the_commands_that_trained_the_runs_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "grpo-1", 5, "grpo", 1)
    commands = ["cw-grpo train method=grpo", "cw-grpo train method=grpo '--home=a b' trainer.x=<b>"]
    (Path(run.partition("=")[2] or run) / "commands.txt").write_text("\n".join(commands) + "\n")
    page = build([run], tmp_path / "out")
    shown = pd.read_csv(tmp_path / "out" / "commands.csv")
    assert shown.start.tolist() == [1, 2] and shown.command.tolist() == commands
    assert "trainer.x=&lt;b&gt;" in page.read_text()


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


def test_the_text_promises_what_is_drawn(full: Path, tmp_path) -> None:
    one = build([make_run(tmp_path / "run", 5, "grpo")], tmp_path / "one").read_text()
    assert "its 95% t interval" not in one and "95%" not in one and "several" not in one
    assert not list((tmp_path / "one").glob("curves_kept*")) and "Not shown: kept of positive advantages" in one
    assert "its 95% t interval as a band from 3 seeds on" in full.read_text()
    assert "actor/cw_grpo/kept_positive; not in the metrics of grpo" in full.read_text()


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


def test_two_runs_of_one_seed_are_a_repeat(tmp_path, caplog) -> None:
    of_runs = {"a": (1, 0), "b": (1, 0), "c": (2, 0), "d": (2, 1)}
    runs = [seeded(tmp_path / name, *seed, number) for number, (name, seed) in enumerate(of_runs.items())]
    build(runs, tmp_path / "out")
    [row] = pd.read_csv(tmp_path / "out/summary.csv").to_dict("records")
    assert (row["seeds"], row["runs"]) == (3, 4)
    assert "grpo: a and b have the same seeds, and count as one seed, repeated" in caplog.text
    last = [load_metrics(run)["actor/entropy"].iloc[-1] for run in runs]
    assert row["entropy, last"].startswith(f"{np.mean([np.mean(last[:2]), *last[2:]]):.3f} (")


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
