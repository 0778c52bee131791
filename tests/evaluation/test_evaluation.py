"""The evaluation without servers: what it reads and rejects, scores against numbers by hand, and the tables.

`tests/e2e/test_eval.py` runs it with verl's servers.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from made_runs import make_run
from omegaconf import OmegaConf
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.datasets.references import load_reward
from cw_grpo.datasets.rows import make_row, write_rows
from cw_grpo.evaluation import answer_store, checkpoints, questions, scores, tables
from cw_grpo.evaluation.model_requests import OWN_PROMPT, ModelRequest, model_requests
from cw_grpo.evaluation.terminal import WIDTH, render, show
from cw_grpo.job.launch import make_plan
from cw_grpo.report import build
from cw_grpo.report.evaluations import read_evaluations

CHAT = [{"role": "user", "content": "?"}]


def benchmark(path: Path, references: list[str]) -> Path:
    rows = [
        make_row(path.stem, CHAT, reference, index=index, split="test", question="?")
        for index, reference in enumerate(references)
    ]
    write_rows(rows, path)
    return path


def command(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


# --- questions ------------------------------------------------------------------------------------------------------


def test_benchmarks_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    known, own = benchmark(tmp_path / "aime24.parquet", ["1"]), benchmark(tmp_path / "own.parquet", ["2", "3"])
    found = questions.find(["aime24", str(own)], tmp_path)
    assert found == {"aime24": known, "own": own}
    read = questions.read("own", own)
    assert [(q.prompt, q.ground_truth, q.data_source) for q in read.rows] == [(CHAT, "2", "own"), (CHAT, "3", "own")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["aime25"], "no such benchmark; there are aime24, amc23, math500, minerva, olympiadbench, or the path"),
        (["amc23"], "there is no .*amc23.parquet; `cw-grpo data paper amc23 --out .*amc23.parquet` makes it"),
        (["x/none.parquet"], "there is no x/none.parquet"),
        (["aime24", "aime24"], "aime24 is named twice"),
        ([], "names none"),
    ],
)
def test_benchmarks_that_are_not_there(tmp_path: Path, names: list[str], message: str) -> None:
    benchmark(tmp_path / "aime24.parquet", ["1"])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        questions.find(names, tmp_path)


def row(**changed: object) -> dict:
    return {**make_row("x", CHAT, "1", index=0, split="test", question="?"), **changed}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"problem": "?", "answer": "1"}], "no column data_source, prompt, reward_model; it has problem, answer"),
        ([row(), row(prompt=[])], "row 1: prompt must be a list of messages"),
        ([row(prompt="What?")], "row 0: prompt must be a list of messages"),
        ([row(), row(reward_model={"style": "rule", "ground_truth": " "})], "row 1: reward_model has no ground_truth"),
        ([row(reward_model="1")], "row 0: reward_model has no ground_truth"),
        ([row(reward_model={"ground_truth": ["1", "one"]})], "row 0: ground_truth must be text or a number.*not list"),
    ],
)
def test_a_file_with_other_columns_or_a_broken_row_is_rejected(tmp_path: Path, rows: list[dict], message: str) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=message):
        questions.read("b", tmp_path / "b.parquet")


def test_a_file_that_is_not_parquet_or_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("question,answer\n")
    with pytest.raises(ValueError, match="text.parquet is not a parquet table"):
        questions.read("text", tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="no rows"):
        questions.read("none", benchmark(tmp_path / "none.parquet", []))


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of `cw-grpo train` with two checkpoints without weights."""
    run = tmp_path / "my-run"
    for step in (50, 100):
        (run / f"checkpoints/global_step_{step}/actor").mkdir(parents=True)
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text("100")
    (run / "config.yaml").write_text("algorithm: {adv_estimator: cw_grpo}\n")
    return run


def test_what_an_argument_names(run_folder: Path, tmp_path: Path) -> None:
    actor = run_folder / "checkpoints/global_step_50/actor"
    last = run_folder / "checkpoints/global_step_100/actor"
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for argument, source in {
        str(run_folder): checkpoints.Source("cw_grpo", 100, last, run_folder),
        str(run_folder / "checkpoints"): checkpoints.Source("cw_grpo", 100, last, run_folder),
        f"{run_folder}@50": checkpoints.Source("cw_grpo", 50, actor, run_folder),
        f"mine={run_folder}@50": checkpoints.Source("mine", 50, actor, run_folder),
        str(actor.parent): checkpoints.Source("cw_grpo", 50, actor, run_folder),
        f"mine={actor}": checkpoints.Source("mine", 50, actor, run_folder),
        str(base): checkpoints.Source("base", None, base, None),
    }.items():
        assert checkpoints.parse(argument) == source
    assert [checkpoints.parse(a).label for a in (str(base), f"{run_folder}@50")] == ["base", "cw_grpo@50"]


def test_a_run_without_its_configuration_is_named_by_its_folder(run_folder: Path) -> None:
    (run_folder / "config.yaml").unlink()
    assert checkpoints.parse(str(run_folder)).label == "my-run@100"


def test_models_that_are_not_there(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "cut-off").mkdir()
    (tmp_path / "cut-off/latest_checkpointed_iteration.txt").touch()
    (run_folder / "checkpoints/global_step_50_old/actor").mkdir(parents=True)
    (run_folder / "checkpoints/global_step_20").mkdir()  # its weights are not kept
    for argument, message in {
        f"{tmp_path}/none": "none: there is no such directory",
        "./none": "there is no such directory",
        "outputs/lr=1e-6": "outputs/lr=1e-6: there is no such directory",
        "nobody/nothing": "no such directory, and no such model on the Hugging Face hub or in its cache",
        f"{run_folder}@20": "no checkpoint of step 20; it has 50, 100",
        str(tmp_path / "empty"): "neither a model in Hugging Face's format .* nor a checkpoint of verl",
        f"a/b={run_folder}": "'a/b' cannot name a model's directory",
        f"..={run_folder}": "'..' cannot name a model's directory",
        f"verl.log={run_folder}": "'verl.log' cannot name a model's directory",
        f"{tmp_path}/model@50": "model is a model, which has no checkpoint of step 50",
        str(tmp_path / "cut-off"): "latest_checkpointed_iteration.txt holds no step number: name one with .*@STEP",
    }.items():
        with pytest.raises(ValueError, match=message):
            checkpoints.parse(argument)


def test_weights_that_are_not_there(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights that can be merged .*save_contents must have `model` or"):
        checkpoints.servable(checkpoints.parse(str(run_folder)), {}, tmp_path / "log")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    with pytest.raises(ValueError, match="base has no weights"):
        checkpoints.servable(checkpoints.parse(str(tmp_path / "base")), {}, tmp_path / "log")


def test_a_checkpoint_that_has_the_weights_in_hugging_faces_format_is_not_merged(run_folder: Path) -> None:
    saved = run_folder / "checkpoints/global_step_100/actor/huggingface"
    saved.mkdir()
    (saved / "model.safetensors").write_bytes(b"1")
    source = checkpoints.parse(str(run_folder))
    model = checkpoints.servable(source, {}, run_folder / "log")
    assert model.path == saved
    (saved / "model.safetensors").write_bytes(b"2")
    assert checkpoints.servable(source, {}, run_folder / "log").sha256 != model.sha256


# --- answers --------------------------------------------------------------------------------------------------------


def line(question: int, sample: int, text: str = "", tokens: int = 1, cut_off: bool = False) -> str:
    return json.dumps(dict(question=question, sample=sample, text=text, tokens=tokens, cut_off=cut_off)) + "\n"


def test_a_last_line_that_was_cut_off_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "b.answers.jsonl"
    assert answer_store.read_answers(path) == {}
    path.write_text(line(0, 0, "é\u2028") + line(1, 0)[:-5])
    assert list(answer_store.read_answers(path)) == [(0, 0)]
    with path.open("a") as file:  # what goes on from there is read whole
        file.write(line(1, 0, "again"))
    assert {key: answer["text"] for key, answer in answer_store.read_answers(path).items()} == {
        (0, 0): "é\u2028",
        (1, 0): "again",
    }


@pytest.mark.parametrize("broken", ["{", "[]", '{"question": 0}', line(0, 0).replace('""', "null").strip()])
def test_another_line_that_is_not_an_answer_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "x").write_text(line(0, 0) + broken + "\n" + line(1, 0))
    with pytest.raises(ValueError, match="x:2 is not a valid answer: .*Delete the line to regenerate it"):
        answer_store.read_answers(tmp_path / "x")


def test_answers_with_other_settings_are_rejected_by_name(tmp_path: Path) -> None:
    shared = dict(sampling={"temperature": 0.6, "seed": 0}, benchmarks={"a": "1"}, models={"m": "1"})
    answer_store.check_settings(tmp_path, **{**shared, "sampling": {"temperature": 1.0}})
    answer_store.check_settings(tmp_path, **shared)  # nothing was answered yet
    path = answer_store.answers_file(tmp_path, "m", "a")
    path.parent.mkdir()
    path.write_text(line(0, 0))
    answer_store.check_settings(tmp_path, sampling=shared["sampling"], benchmarks={"b": "2"}, models={"n": "2"})
    changed = dict(sampling={"temperature": 1.0, "seed": 0}, benchmarks={"a": "x"}, models={"n": "x"})
    with pytest.raises(ValueError) as error:
        answer_store.check_settings(tmp_path, **changed)
    text = str(error.value)
    for named in ("sampling temperature: 0.6 there, 1.0 now", "benchmarks a: 1 there", "models n: 2 there", "--out"):
        assert named in text
    assert "seed" not in text
    answer_store.check_settings(tmp_path, **shared)  # as it was


def test_seeds_differ_and_stay() -> None:
    seeds = {
        answer_store.request_seed(s, b, q, k) for s in (0, 1) for b in ("a", "b") for q in range(3) for k in range(3)
    }
    assert len(seeds) == 36 and all(0 <= seed < 2**63 for seed in seeds)
    assert answer_store.request_seed(0, "aime24", 3, 1) == 2667031266958031674


# --- scores and tables ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> dict:
    """Four questions, two samples each: both right, one right, none right, none right and cut off."""
    path = benchmark(tmp_path_factory.mktemp("b") / "amc23.parquet", ["1/2", "2", "3", "4"])
    texts = [r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{2}", r"\boxed{5}", "3", r"\boxed{1}", "", "4" * 9]
    there = {
        (i // 2, i % 2): {"text": f"<think>a</think>{text}", "tokens": 10 * i, "cut_off": i > 5}
        for i, text in enumerate(texts)
    }
    reward = load_reward()
    result = scores.score(reward, {}, questions.read("amc23", path), there, 2, label="m")
    reward.close_pools()
    return result


def test_scores_against_numbers_by_hand(scored: dict) -> None:
    assert [row["acc"] for row in scored["questions"]] == [[1, 1], [1, 0], [0, 0], [0, 0]]
    assert scored["pass@1"]["mean"] == 3 / 8 and scored["pass@K"]["mean"] == 2 / 4
    assert scored["pass@1"]["low"] < 3 / 8 < scored["pass@1"]["high"]
    assert (scored["mean_tokens"], scored["cut_off"]) == (35, 2 / 8)
    assert (scored["format"], scored["no_answer"]) == (7 / 8, 3 / 8)
    assert scored["timeout"] == scored["bad_reference"] == 0


def evaluation(method: str, step: int | None, name: str, accuracies: list[list[float]], **settings: object) -> dict:
    rows = [
        {"question": i, "acc": acc, "tokens": [1] * len(acc), "cut_off": [False] * len(acc)}
        for i, acc in enumerate(accuracies)
    ]
    mean = {"mean": 0.5, "low": 0.25, "high": 0.75}
    shares = dict.fromkeys(("mean_tokens", "cut_off", "format", "no_answer", "timeout", "bad_reference"), 0.0)
    return {
        **shares, "kind": scores.KIND, "method": method, "step": step, "benchmark": name, "benchmark_sha256": name,
        "samples": len(accuracies[0]), "pass@1": mean, "pass@K": mean, "questions": rows,
        "settings": {"temperature": 0.6, "max_tokens": 9, **settings},
    }  # fmt: skip


RIGHT, WRONG, HALF = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]
FOUND = [
    evaluation("cw_grpo", 50, "own", [RIGHT, HALF]),
    evaluation("cw_grpo", 100, "own", [RIGHT, RIGHT]),
    evaluation("cw_grpo", 100, "aime24", [RIGHT, HALF, HALF, WRONG]),
    evaluation("grpo", 100, "own", [HALF, HALF]),
    evaluation("grpo", 100, "aime24", [HALF, WRONG, WRONG, WRONG]),
    evaluation("base", None, "own", [WRONG, WRONG]),
]


def test_table_2_has_the_last_steps_and_paired_differences_to_grpo() -> None:
    levels, differences, missing = tables.table2(FOUND)
    assert list(levels.columns) == ["method", "step", "aime24", "own", "Avg."]
    assert levels["method"].tolist() == ["base", "grpo", "cw_grpo"]
    assert levels["step"].tolist() == [None, 100, 100]
    base, grpo, cw = levels.to_dict("records")
    assert cw["own"] == "100.0 (100.0 to 100.0)" and cw["aime24"].startswith("50.0 (")
    assert cw["Avg."].startswith("75.0 (") and grpo["Avg."].startswith("31.2 (")
    assert (base["aime24"], base["Avg."]) == ("-", "-")
    # Question by question: own +0.5, +0.5; aime24 +0.5, +0.5, +0.5, 0.
    assert differences["method"].tolist() == ["base", "cw_grpo"]
    assert differences["own"].tolist() == ["-50.0 (-50.0 to -50.0)", "+50.0 (+50.0 to +50.0)"]
    assert differences["aime24"][1].startswith("+37.5 (+12.5 to +50.0)")
    assert differences["Avg."][1].startswith("+43.8 (")
    assert missing == []


def test_table_3_has_all_steps_of_methods_with_several() -> None:
    table = tables.table3(FOUND)
    assert list(table.columns) == ["method", "step", "aime24", "own"]
    assert table[["method", "step"]].to_numpy().tolist() == [["cw_grpo", 50], ["cw_grpo", 100]]
    assert table["aime24"][0] == "-" and table["own"][0].startswith("75.0 (")
    assert tables.table3(FOUND[3:]).empty


def test_evaluations_that_differ_are_not_paired() -> None:
    other = evaluation("cw_grpo", 100, "own", [RIGHT, RIGHT], temperature=1.0)
    elsewhere = {**evaluation("kl_cov", 100, "own", [RIGHT, RIGHT]), "benchmark_sha256": "x"}
    _, differences, missing = tables.table2([FOUND[3], other, elsewhere])
    assert (differences[["own", "Avg."]] == "-").all(axis=None)
    assert missing == [
        "cw_grpo against grpo on own: made with different settings (temperature 1.0 and 0.6)",
        "kl_cov against grpo on own: of different files",
    ]
    assert "no model of that name" in tables.table2(FOUND[:1])[2][0]
    _, differences, missing = tables.table2([*FOUND[:4], evaluation("grpo", 50, "aime24", [HALF] * 4)])
    assert differences["aime24"].tolist() == ["-"] and differences["own"][0].startswith("+50.0")
    assert missing == ["cw_grpo against grpo on aime24: grpo has no evaluation there at its last step 100"]
    with pytest.raises(ValueError, match="two evaluations of grpo, step 100, on own"):
        tables.table2([FOUND[3], FOUND[3]])


def test_the_report_has_the_tables_and_says_what_it_cannot_read(tmp_path: Path) -> None:
    for entry in FOUND:
        scores.write(tmp_path / f"eval/{entry['method']}@{entry['step']}/{entry['benchmark']}.json", entry)
    (tmp_path / "eval/data").mkdir()
    (tmp_path / "eval/data/aime24.json").write_text("[]")  # of somebody else
    (tmp_path / "eval/data/more.json").write_text("{}")
    assert len(scores.read([tmp_path / "eval"])) == len(FOUND)
    (tmp_path / "eval/grpo@100/own.answers.jsonl").touch()
    (tmp_path / "eval/grpo@100/own.json").rename(tmp_path / "own.json")
    (tmp_path / "eval/grpo@100/own.json").write_text("{}")
    with pytest.raises(ValueError, match="own.json does not hold scores"):
        scores.read([tmp_path / "eval"])
    (tmp_path / "own.json").rename(tmp_path / "eval/grpo@100/own.json")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    unreadable = [tmp_path / name for name in ("broken.json", "other.json", "empty", "none")]
    out = tmp_path / "out"
    html = build([make_run(tmp_path / "run", 3)], out, [tmp_path / "eval", *unreadable]).read_text()
    for text in ("Tables 2 and 3", "broken.json cannot be read as JSON", "other.json does not hold scores",
                 "empty: no scores", "none: there is no evaluation"):  # fmt: skip
        assert text in html
    table = pd.read_csv(out / "table2.csv").set_index("method")
    assert table["own"]["cw_grpo"] == "100.0 (100.0 to 100.0)"
    assert {path.name for path in out.glob("table*.csv")} == {"table2.csv", "table2_differences.csv", "table3.csv"}
    every = pd.read_csv(out / "evaluations.csv")
    assert len(every) == len(FOUND) and (every["pass@1"] == 50).all() and (every["pass@1 high"] == 75).all()
    assert "Tables 2 and 3" not in build([str(tmp_path / "run")], out).read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pass@K": None}, "whole scores: no pass@K"),
        ({"settings": None, "questions": None}, "whole scores: no questions, settings"),
        ({"cut_off": float("inf")}, "finite numbers"),
        ({"questions": [{"acc": [1.0, float("nan")]}]}, "finite numbers"),
        ({"questions": []}, "finite numbers"),
        ({"questions": [1]}, "finite numbers"),
        ({"format": "boxed"}, "finite numbers"),
    ],
)
def test_broken_scores_are_named_and_leave_the_report(tmp_path: Path, changed: dict, message: str) -> None:
    entry = {key: value for key, value in {**FOUND[0], **changed}.items() if value is not None}
    (tmp_path / "own.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=f"own.json.*{message}"):
        scores.read([tmp_path / "own.json"])
    found, skipped = read_evaluations([tmp_path / "own.json"])
    assert found == [] and len(skipped) == 1


def test_answers_that_could_not_be_compared_or_have_no_box_are_said(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "cw_grpo")
    entry = {**FOUND[3], "bad_reference": 0.5, "timeout": 0.25, "no_answer": 0.9}
    scores.write(tmp_path / "grpo@100/own.json", entry)
    scores.write(tmp_path / "cw_grpo@100/own.json", {**FOUND[1], "no_answer": 0.5})
    show(tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "grpo@100 on own: 90.0% of the answers have no box that the reward reads: check the prompt (--prompt) and "
        "reward.custom_reward_function.reward_kwargs.require_think",
        "grpo@100 on own: 50.0% of the answers count as wrong: their reference cannot be read",
        "grpo@100 on own: 25.0% of the answers count as wrong: comparing took too long",
    ]


def test_the_tables_fit_a_terminal_and_have_one_unit(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "cw_grpo")
    names = ["aime24", "amc23", "math500", "minerva", "olympiadbench"]
    models = [("base", None), ("grpo", 100), ("cw_grpo_released", 50), ("cw_grpo_released", 100)]
    for method, step in models:
        for name in names:
            entry = evaluation(method, step, name, [RIGHT, HALF, WRONG])
            scores.write(tmp_path / f"{tables.label(method, step)}/{name}.json", entry)
    show(tmp_path)
    text = "\n".join(record.getMessage() for record in caplog.records)
    tabular = [line for line in text.splitlines() if not line.startswith("scores:")]
    assert max(map(len, tabular)) <= WIDTH == 100
    assert "<NA>" not in text and "nan" not in text and "None" not in text
    first = render(tables.table2(scores.read([tmp_path]))[0]).splitlines()
    assert [line.split()[0] for line in first if " to " in line][:3] == ["base", "grpo", "cw_grpo_released"]
    every = pd.read_csv(tmp_path / "scores.csv")
    assert (every["pass@1"] == 50).all() and "<NA>" not in (tmp_path / "scores.csv").read_text()


# --- as a run was trained -------------------------------------------------------------------------------------------

BOXED, MATHS = "What is 2 + 3?", "Compute $\\sqrt{16}$."


def trained(run: Path, **config: object) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"algorithm": {"adv_estimator": "cw_grpo"}, **config}))


def asked(
    tmp_path: Path, *models: str, prompt: str | None = None, overrides: tuple[str, ...] = ()
) -> list[ModelRequest]:
    """What the models are asked: one question, on a benchmark with a prompt of its own."""
    rows = [make_row("own", CHAT, "4", index=0, split="test", question=MATHS)]
    write_rows(rows, tmp_path / "own.parquet")
    plan = make_plan(overrides, config_name="eval")
    benchmarks = {"own": questions.read("own", tmp_path / "own.parquet")}
    return model_requests(list(map(checkpoints.parse, models)), benchmarks, plan.config, plan.config_dir, prompt)


def chat(request: ModelRequest) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request.asked["own"].rows[0].prompt]


def test_a_run_is_asked_and_scored_as_its_job_was(run_folder: Path, tmp_path: Path) -> None:
    # As `cw-grpo train scale=smollm2` leaves it, with another of the recipe's prompts.
    config = make_plan(["scale=smollm2", "prepare.prompt=../prompts/boxed.yaml", "method=cw_grpo"]).config
    OmegaConf.save(config, run_folder / "config.yaml")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    base, run = asked(tmp_path, str(tmp_path / "base"), str(run_folder))
    assert run.reward_kwargs == base.reward_kwargs == {"format_weight": 0.0, "require_think": False}
    [(role, content)] = chat(run)
    assert role == "user" and content.startswith(MATHS) and content.endswith("within \\boxed{}.")
    assert chat(base) == chat(run) and base.prompt_digest("own") == run.prompt_digest("own")


def test_the_prompt_is_that_of_the_training_file(run_folder: Path, tmp_path: Path) -> None:
    train = [{"role": "system", "content": "Think."}, {"role": "user", "content": f"Q: {BOXED} A:"}]
    write_rows([make_row("x", train, "5", index=0, split="train", question=BOXED)], tmp_path / "train.parquet")
    template = {"enable_thinking": False}
    for files in (str(tmp_path / "train.parquet"), [str(tmp_path / "train.parquet"), "/none.parquet"]):
        trained(run_folder, data={"train_files": files, "apply_chat_template_kwargs": template})
        [run] = asked(tmp_path, str(run_folder))
        assert chat(run) == [("system", "Think."), ("user", f"Q: {MATHS} A:")]
        assert run.chat_template == template


def test_what_the_user_says_wins(run_folder: Path, tmp_path: Path) -> None:
    trained(
        run_folder,
        prepare={"prompt": "../prompts/boxed.yaml", "reward": "../reward.py"},
        reward={"custom_reward_function": {"path": None, "reward_kwargs": {"require_think": False, "timeout": 9.0}}},
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text("- {role: user, content: 'Mine: {{ question }}'}")
    override = "++reward.custom_reward_function.reward_kwargs.require_think=true"
    [run] = asked(tmp_path, str(run_folder), prompt=str(mine), overrides=(override,))
    assert chat(run) == [("user", f"Mine: {MATHS}")]
    assert run.reward_kwargs == {"require_think": True, "timeout": 9.0}
    [run] = asked(tmp_path, str(run_folder), prompt=OWN_PROMPT)
    assert chat(run) == [("user", "?")]
    with pytest.raises(ValueError, match="none.yaml"):
        asked(tmp_path, str(run_folder), prompt=str(tmp_path / "none.yaml"))
    mine.write_text("- {role: user, content: '{{ expression }}'}")
    with pytest.raises(ValueError, match="'expression' is undefined; the data offers: .*question"):
        asked(tmp_path, str(run_folder), prompt=str(mine))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"prepare": {"prompt": "../prompts/expression.yaml"}},
            "on own: in the benchmark's own prompt, .*'expression'",
        ),
        ({"prepare": {"prompt": "../prompts/none.yaml"}}, "prompt of its training is not known: prompt .*none.yaml"),
        ({"data": {"train_files": "/none.parquet"}}, "prompt of its training is not known: /none.parquet"),
        ({"data": {"train_files": "own.parquet"}}, "first chat does not quote extra_info.question"),
        (
            {"reward": {"custom_reward_function": {"path": "/mine.py"}}},
            "another reward .*/mine.py.*scored with .*reward.py",
        ),
        ({"reward": {"custom_reward_function": {"path": None}}}, "another reward .one of verl"),
        ({"data": {"apply_chat_template_kwargs": {"x": "${none}"}}}, "data.apply_chat_template_kwargs of .*not known"),
        ({"algorithm": {"adv_estimator": "${none}"}}, ""),
        ({"reward": {"custom_reward_function": "x"}, "data": {"train_files": 3}}, "prompt of its training"),
        ({}, ""),
    ],
)
def test_what_cannot_be_taken_from_a_run_is_said(
    run_folder: Path, tmp_path: Path, monkeypatch, caplog, config: dict, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(run_folder, **config)
    [run] = asked(tmp_path, str(run_folder))
    assert chat(run) == [("user", "?")] and run.reward_kwargs == {}
    assert re.search(said, caplog.text) if said else not caplog.text


def test_runs_that_were_trained_differently_leave_a_base_model_as_it_is(run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    trained(run_folder, prepare={"prompt": "../prompts/boxed.yaml"})
    trained(other, prepare={"prompt": "../prompts/paper.yaml"})
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    base, one, two = asked(tmp_path, str(tmp_path / "base"), f"a={run_folder}", f"b={other}")
    assert chat(base) == [("user", "?")] and len(chat(one)) == 1 and len(chat(two)) == 2
    assert len({request.prompt_digest("own") for request in (base, one, two)}) == 3


# --- the configuration and the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(("cluster", "name"), [("cpu", "transformers"), ("1node", "vllm")])
def test_verl_takes_the_configuration(cluster: str, name: str) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    config = make_plan([f"cluster={cluster}"], config_name="eval").config
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.name, rollout.load_format, rollout.nnodes) == (name, "auto", 1)
    assert rollout.n_gpus_per_node == config.trainer.n_gpus_per_node
    assert not rollout.free_cache_engine and not rollout.enable_sleep_mode


def test_the_help_shows_the_defaults_of_the_configuration() -> None:
    from typer.main import get_command

    rollout = make_plan([], config_name="eval").config.actor_rollout_ref.rollout
    options = {option.name: option.show_default for option in get_command(app).commands["eval"].params}
    assert options["samples"] == str(rollout.n)
    assert options["max_tokens"] == str(rollout.response_length)
    assert options["temperature"] == str(rollout.temperature)
    text = re.sub(r"\s+", " ", command("--help").output)
    for shown in ("default: (4)", "default: (4096)", "default: (0.6)", "default: (eval in --home)"):
        assert shown in text


def test_the_command_rejects_settings_without_writing_anything(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    file, out = benchmark(tmp_path / "b.parquet", ["1"]), tmp_path / "out"
    for options, message in {
        ("--samples", "0"): "--samples must be at least 1, got 0",
        ("--max-tokens", "0"): "--max-tokens must be at least 1",
        ("--temperature", "-1"): "--temperature must be 0 or more",
        ("--temperature", "0"): "use --samples 1 instead of 4",
        ("--set", "cluster=9nodes"): "1node",
        ("--set", "reward.custom_reward_function.path=mine.py"): "scored with the recipe's reward",
        ("--set", "cluster=1node"): "trainer.n_gpus_per_node=4, and torch sees 0 GPUs",
    }.items():
        result = command(tmp_path / "m", "--benchmarks", file, "--out", out, *options)
        assert result.exit_code == 2 and message in result.output, result.output
    result = command(tmp_path / "m", tmp_path / "m", "--benchmarks", file, "--out", out)
    assert "two models are called m: tell them apart with NAME=PATH" in result.output
    assert not out.exists()
