"""The report: what it says of runs with records, and of runs that lack something."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import make_batch
from omegaconf import OmegaConf

from cw_grpo import covariance_weights
from cw_grpo.hooks.samples import METADATA, SCHEMA
from cw_grpo.job.plan import make_plan
from cw_grpo.report import build
from cw_grpo.report.attenuation import pass_rates
from cw_grpo.report.collect import read_run
from cw_grpo.report.tokens import most_attenuated
from cw_grpo.runs import method_of

PICTURES = {"curves", "entropy_reward", "covariance", "theory"}


def make_run(folder: Path, steps: int, method: str = "cw_grpo", seed: int = 0, record: bool = False) -> str:
    """A run folder as `cw-grpo train` leaves it, with made-up numbers."""
    rng = np.random.default_rng(seed)
    (folder / "metrics").mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        data = {
            "training/global_step": step,
            "actor/entropy": 0.3 / step + 0.01 * rng.random(),
            "critic/score/mean": step / steps,
            "response_length/mean": 20.0,
            "actor/lr": 1e-3,
            "timing_s/step": 2.0,
        }
        lines.append(json.dumps({"step": step, "data": data}))
        if record:
            write_record(folder / "record", step, seed + step)
    (folder / "metrics" / "attempt-001.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text(f"algorithm: {{adv_estimator: {method}}}\n")
    return str(folder)


def write_record(folder: Path, step: int, seed: int, model: str = "/no/such/model", applied: str = "none") -> Path:
    folder.mkdir(exist_ok=True)
    batch = make_batch(seed)
    advantages = batch.rewards - batch.rewards.view(-1, 4).mean(1).repeat_interleave(4)
    result = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)
    row, token = (places.numpy() for places in batch.mask.nonzero(as_tuple=True))
    columns = [
        np.full(len(row), step), batch.index[row], row, token, row * 100 + token, batch.log_probs.numpy()[row, token],
        advantages.numpy()[row], result.covariance.numpy()[row, token], result.weights.numpy()[row, token],
        batch.rewards.numpy()[row],
    ]  # fmt: skip
    about = {METADATA: json.dumps({"model": model, "applied": applied, "prompts": {"uid-0": [7]}}).encode()}
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA.with_metadata(about))
    pq.write_table(table, folder / f"step-{step:06d}.parquet")
    return folder / f"step-{step:06d}.parquet"


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A report of two methods with two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / f"{method}-{seed}", 30, method, seed, record=True)
        for method in ("grpo", "cw_grpo")
        for seed in (1, 2)
    ]
    return build(runs, folder / "out")


def test_every_part_has_its_picture_and_table(full: Path) -> None:
    html = full.read_text()
    assert {path.stem for path in full.parent.glob("*.png")} == PICTURES
    tables = {path.stem for path in full.parent.glob("*.csv")}
    assert tables >= {"summary", "curves", "entropy_at_equal_reward", "covariance", "quadrants", "pass_rates", "theory"}
    assert html.count("data:image/png;base64,") == len(PICTURES)
    assert not re.search(r'(src|href)="(?!data:)', html)
    summary = pd.read_csv(full.parent / "summary.csv")
    assert summary.method.tolist() == ["grpo", "cw_grpo"] and (summary.seeds == 2).all()
    # Rewards rise evenly to 1: the last tenth of 30 steps has the mean of 28/30, 29/30 and 1.
    assert summary["reward, last"].str.startswith("0.967").all()


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
            "step": 1, "group": "g", "response": [0, 1, 2, 3, 4], "reward": [1.0, 0.0, 0.0, 0.0, 0.0],
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
    assert read_run(f"mine={run}").applies_weights is applies


def test_without_a_tokenizer_token_ids_are_shown(tmp_path) -> None:
    html, problem = most_attenuated(write_record(tmp_path, 1, 3))
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
        "cut off",
        "differ in their number",
        "no metrics in",
        "cannot be read",
        "no actor/kl_loss",
        "config of",
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
    assert method_of(OmegaConf.to_container(config, resolve=True)) == method


def test_runs_of_the_same_name_are_kept_apart_and_what_differs_is_said(tmp_path) -> None:
    runs = [make_run(tmp_path / home / "tiny-grpo", 12, "grpo", seed) for seed, home in enumerate("ab")]
    for run, rate in zip(runs, (1, 2), strict=True):
        Path(run, "config.yaml").write_text(f"algorithm: {{adv_estimator: grpo}}\ndata: {{seed: {rate}}}\nlr: {rate}\n")
    html = build([*runs, runs[0]], tmp_path / "out").read_text()
    assert "grpo: its runs stand here as seeds of one method, and differ in lr<" in html
    assert "named twice, and read once" in html
    differences = pd.read_csv(tmp_path / "out/differences.csv").set_index("setting")
    assert set(differences.columns) == set(runs) and differences.loc["lr"].tolist() == [1, 2]
    assert pd.read_csv(tmp_path / "out/durations.csv")["run"].tolist() == runs


def test_metrics_files_without_a_config_are_not_pooled(tmp_path) -> None:
    files = [Path(make_run(tmp_path / name, 12), "metrics/attempt-001.jsonl") for name in "ab"]
    build(list(map(str, files)), tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/summary.csv")["method"].tolist() == list(map(str, files))


def test_recorded_tokens_are_found_where_the_config_has_them_written(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 12, record=True))
    (run / "record").rename(tmp_path / "elsewhere")
    (run / "config.yaml").write_text(f"algorithm: {{adv_estimator: grpo, cw_grpo: {{record: {tmp_path}/elsewhere}}}}\n")
    assert len(read_run(str(run)).files) == 12
    (tmp_path / "elsewhere").rename(run / "metrics/record")  # beside a file of metrics
    assert len(read_run(str(run / "metrics/attempt-001.jsonl")).files) == 12


def test_a_last_step_without_advantages_is_passed_over(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 3, record=True))
    last = run / "record/step-000003.parquet"
    table = pq.read_table(last)
    zeros = pa.array(np.zeros(len(table)), table.schema.field("advantage").type)
    place = table.schema.get_field_index("advantage")
    pq.write_table(table.set_column(place, table.schema.field(place), zeros), last)
    assert "run, step-000002" in build([str(run)], tmp_path / "out").read_text()


def test_validations_apart_are_no_steps(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 12))
    file = run / "metrics/attempt-001.jsonl"
    file.write_text('{"step": 0, "data": {"val-core/math500/acc/mean@4": 0.5}}\n' + file.read_text())
    assert len(read_run(str(run)).metrics) == 12


def test_nan_values_leave_gaps(tmp_path) -> None:
    run = Path(make_run(tmp_path / "a", 12))
    file = run / "metrics/attempt-001.jsonl"
    file.write_text(re.sub(r'"critic/score/mean": 0\.[0-9]+', '"critic/score/mean": NaN', file.read_text(), count=3))
    build([str(run)], tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out/summary.csv")
    assert summary["reward, last"].astype(float).item() == pytest.approx(1)


def test_no_run_at_all(tmp_path) -> None:
    with pytest.raises(ValueError, match="no run can be read"):
        build([str(tmp_path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
@pytest.mark.parametrize("width", [1280, 375])
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
