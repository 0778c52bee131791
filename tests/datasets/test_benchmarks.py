"""The paper's data: columns, values, rows left out, files of each format, the hub out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.datasets import BENCHMARKS
from cw_grpo.datasets.benchmarks import (
    Columns,
    Unusable,
    benchmarks,
    find_columns,
    load_tokenizer,
    make_rows,
    paper_prompt,
    read_file,
    text_of,
)
from cw_grpo.datasets.rows import SCHEMA, Prompt

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
ROWS = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(40)]


def command(*arguments, **settings):
    return CliRunner().invoke(app, ["data", *map(str, arguments)], **settings)


def write(path: Path, rows) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        import pandas

        pandas.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(rows, name="amc23", **options):
    return make_rows(benchmarks()[name], rows, prompt=Prompt(paper_prompt()), **options)


def answers(result) -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in result.rows]


# --- what the recipe says -----------------------------------------------------------------------------------------


def test_ids_and_sizes_are_those_of_table_4_and_appendix_a() -> None:
    assert {b.name: (b.id, b.size, b.split) for b in benchmarks().values()} == {
        "open-rs": ("knoveleng/open-rs", 7000, "train"),
        "aime24": ("HuggingFaceH4/aime_2024", 30, "test"),
        "amc23": ("knoveleng/AMC-23", 40, "test"),
        "math500": ("HuggingFaceH4/MATH-500", 500, "test"),
        "minerva": ("knoveleng/Minerva-Math", 272, "test"),
        "olympiadbench": ("knoveleng/OlympiadBench", 675, "test"),
    }
    assert tuple(benchmarks()) == BENCHMARKS


def test_the_wording_is_figure_4() -> None:
    system, user = Prompt(paper_prompt()).render({"question": "Why?"})
    assert user == {"role": "user", "content": "Why?"}
    assert system["role"] == "system"
    text = system["content"]
    paper = ROOT.parent / "shared" / "paper.txt"
    if not paper.is_file():
        pytest.skip(f"no {paper} to compare with")
    assert text.replace("\\boxed{}", "boxed") in " ".join(paper.read_text("utf-8").split())


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv"])
def test_each_format_gives_the_same_bytes_and_so_does_a_second_run(tmp_path, suffix: str) -> None:
    file = write(tmp_path / f"in{suffix}", ROWS)
    reference = tmp_path / "reference.parquet"
    assert command("amc23", "--from", write(tmp_path / "r.parquet", ROWS), "--out", reference).exit_code == 0
    for _ in range(2):
        done = command("amc23", "--from", file, "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        assert "amc23: 40 of 40 questions in" in done.output and "WARNING" not in done.output
        assert "prompt lengths are not checked" in done.output
        assert (tmp_path / "out" / "amc23.parquet").read_bytes() == reference.read_bytes()
    table = pq.read_table(reference)
    assert table.schema.equals(SCHEMA)
    row = table.slice(7, 1).to_pylist()[0]
    assert row["data_source"] == "amc23" and row["reward_model"] == {"style": "rule", "ground_truth": "8"}
    assert row["extra_info"] == {"index": 7, "split": "test", "question": "What is 7 + 1?"}
    assert [m["role"] for m in row["prompt"]] == ["system", "user"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no benchmark questions in {SHARED}")
def test_all_makes_what_is_there_and_lists_what_is_not(tmp_path) -> None:
    done = command("all", "--from", SHARED, env={"CW_GRPO_HOME": str(tmp_path)})
    assert done.exit_code == 2
    for name in BENCHMARKS:
        file = tmp_path / "data" / f"{name}.parquet"
        assert file.is_file() == (SHARED / file.name).is_file()
        if file.is_file():
            assert f"{name}: {benchmarks()[name].size} of {benchmarks()[name].size} questions" in done.output
            source = pq.read_table(SHARED / file.name).to_pylist()
            rows = pq.read_table(file).to_pylist()
            assert [r["extra_info"]["question"] for r in rows] == [s["problem"].strip() for s in source]
            assert [r["reward_model"]["ground_truth"] for r in rows] == [str(s["answer"]).strip() for s in source]
        else:
            assert f"must have one of {name}.parquet, {name}.json" in done.output


def test_a_csv_cell_is_text(tmp_path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('problem,answer\nq,540.0\nr,007\nNA,nan\n"a\nb","1,000"\nlast,\n')
    result = made(read_file(file))
    assert answers(result) == ["540.0", "007", "nan", "1,000"]
    assert result.left_out == {"no answer": [4]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "must end in one of .parquet, .json, .jsonl, .csv"),
        ("a.json", b"garbage", "a.json is not a json table"),
        ("a.json", b"", "a.json is not a json table"),
        ("a.jsonl", b'{"problem": "\\ud800", "answer": 1}\n', "a.jsonl is not a json table"),
        ("a.parquet", b"PAR1", "a.parquet is not a parquet table"),
        ("a.csv", b"", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\n\xff,1\n", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\nq,1,2\nq,1,2,3\n", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\n", "amc23: no rows"),
        ("a.csv", b"problem,answer\nWhat is 1,000 + 1?,1001\n", "more cells than its header: put quotes"),
        ("a.csv", b"problem,answer\nWhat is 1 + 1?,2,\n", "more cells than its header: put quotes"),
        ("a.json", b'{"data": [{"problem": "q", "answer": "1"}]}', "no column for the question .*'data'"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        made(read_file(tmp_path / name))
    assert command("amc23", "--from", tmp_path / name, "--out", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_and_what_would_be_overwritten(tmp_path) -> None:
    file = write(tmp_path / "amc23.parquet", ROWS)
    before = file.read_bytes()
    for arguments, message in (
        (("amc23", "--from", tmp_path / "no.csv"), "there is nothing of that name"),
        (("all", "--from", file), "several benchmarks need a folder"),
        (("all", "--from", tmp_path, "--out", "x.parquet"), "several benchmarks need a folder"),
        (("amc23", "--from", file, "--out", tmp_path), "is what is read"),
    ):
        done = command(*arguments)
        assert done.exit_code == 2 and message in done.output, done.output
    write(tmp_path / "amc23.csv", ROWS)
    assert "it has amc23.parquet and amc23.csv" in command("amc23", "--from", tmp_path, "--out", "y").output
    assert file.read_bytes() == before


# --- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "given", "columns"),
    [
        (["id", "problem", "solution", "answer", "url"], {}, Columns("problem", "answer")),
        (["question", "final_answer", "solution"], {}, Columns("question", "final_answer")),
        (["problem", "solution"], {}, Columns("problem", "solution", boxed=True)),
        (["problem", "answer", "solution"], {"answer": "solution"}, Columns("problem", "solution", boxed=True)),
        (["problem", "question", "a"], {"question": "question", "answer": "a"}, Columns("question", "a")),
    ],
)
def test_columns_are_found_or_given(names, given, columns) -> None:
    assert find_columns(names, benchmarks()["minerva"], **given) == columns


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["text", "answer"], {}, "no column for the question .*--question-column; the columns are: 'text', 'answer'"),
        (["problem", "gold"], {}, "no column for the answer .*--answer-column; the columns are: 'problem', 'gold'"),
        (
            ["problem", "question", "answer"],
            {},
            "'problem' and 'question' could each be the question: .*--question-col",
        ),
        (
            ["problem", "answer", "final_answer"],
            {},
            "'answer' and 'final_answer' could each be the answer: .*--answer-",
        ),
        (["problem", "answer"], {"answer": "gold"}, "no column 'gold' .--answer-column.; the columns are: 'problem'"),
    ],
)
def test_a_wrong_guess_is_an_error_that_lists_the_columns(names, given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_columns(names, benchmarks()["minerva"], **given)


def test_the_last_box_of_a_solution_is_the_answer() -> None:
    result = made(
        [
            {"problem": "a", "solution": "First \\boxed{1}, then \\boxed{\\frac{1}{2}}."},
            {"problem": "b", "solution": "It is 3."},
        ]
    )
    assert answers(result) == ["\\frac{1}{2}"]
    assert result.left_out == {"no \\boxed{} in the solution": [1]}


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (540, "540"),
        (540.0, "540"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (10**30, str(10**30)),
        ("540.0", "540.0"),
        ("  \\frac{1}{2}\n", "\\frac{1}{2}"),
        ("None", "None"),
        (["$2$"], "$2$"),
        (["$2$", 3], "$2$, 3"),
        ("π\u202e", "π\u202e"),
    ],
)
def test_a_value_as_text(value, text: str) -> None:
    assert text_of(value, "answer") == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no answer"),
        (float("nan"), "no answer"),
        ("", "no answer"),
        (" \n\t", "no answer"),
        ([], "no answer"),
        (["1", None], "no answer"),
        (True, "neither text nor a number"),
        (float("inf"), "neither text nor a number"),
        ({"value": "1"}, "neither text nor a number"),
        (b"1", "neither text nor a number"),
        ("1\x002", "NUL"),
    ],
)
def test_a_value_that_is_no_text(value, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        text_of(value, "answer")


def test_values_of_every_kind_come_through_files(tmp_path) -> None:
    rows = [{"problem": f"q{i}", "answer": a} for i, a in enumerate([540, "x", 1.5, None, True, ["$2$"], {"a": 1}])]
    result = made(read_file(write(tmp_path / "a.jsonl", rows)))
    assert answers(result) == ["540", "x", "1.5", "$2$"]
    assert result.left_out == {"no answer": [3], "answer is neither text nor a number": [4, 6]}
    rows = [{"problem": "q", "answer": 540.0}, {"problem": "r", "answer": None}]
    assert answers(made(read_file(write(tmp_path / "a.parquet", rows)))) == ["540"]
    nested = [{"problem": {"text": "q"}, "answer": "1"}]
    with pytest.raises(
        ValueError, match="not one of 1 rows can be used: .*1 with question is neither text nor a number"
    ):
        made(read_file(write(tmp_path / "b.parquet", nested)))


# --- rows left out ------------------------------------------------------------------------------------------------


def test_rows_left_out_are_counted_and_named(tmp_path) -> None:
    rows = [dict(row) for row in ROWS]
    for i in (3, 5, 6, 7, 8, 9, 20):
        rows[i]["answer"] = None
    rows[4]["problem"] = " "
    rows[11]["problem"] = rows[10]["problem"]
    rows[12]["answer"] = "9" * 100_000
    file = write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.parquet"
    done = command("amc23", "--from", file, "--out", out)
    assert done.exit_code == 0, done.output
    assert "amc23: 31 of 40 questions in" in done.output
    assert "left out: 7 with no answer: row 3, 5, 6, 7, 8 and 2 more" in done.output
    assert "left out: 1 with no question: row 4" in done.output
    assert "left out: 1 with answer longer than the 512 characters that the reward reads: row 12" in done.output
    assert "kept: 1 whose question is there already: row 11 (as 10)" in done.output
    assert [e["index"] for e in pq.read_table(out)["extra_info"].to_pylist()][:6] == [0, 1, 2, 10, 11, 13]

    strict = command("amc23", "--from", file, "--out", tmp_path / "strict.parquet", "--strict")
    assert strict.exit_code == 2 and "7 with no answer" in strict.output and "--strict" in strict.output
    assert not (tmp_path / "strict.parquet").exists()


def test_another_number_of_rows_than_the_papers_is_said_with_both(tmp_path) -> None:
    done = command("amc23", "--from", write(tmp_path / "in.csv", ROWS[:39]), "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "in.csv has 39 rows, where the paper's amc23 has 40" in done.output and "WARNING" in done.output


def test_long_prompts_are_left_out_by_the_tokenizer_as_verl_does(tmp_path) -> None:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from cw_grpo.job.models import character_tokenizer

    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    wording = tmp_path / "prompt.yaml"
    wording.write_text('- {role: user, content: "{{ question }}"}\n')
    rows = [{"problem": "x" * n, "answer": "1"} for n in range(1, 41)] + [{"problem": "y" * 1_000_000, "answer": "1"}]
    file = write(tmp_path / "in.jsonl", rows)
    options = ("--from", file, "--prompt", wording, "--out")
    everything = command("amc23", *options, tmp_path / "everything.parquet")
    assert everything.exit_code == 0, everything.output
    checked = ("--tokenizer", tmp_path / "tokenizer", "--max-prompt-length", 30)
    done = command("amc23", *options, tmp_path / "short.parquet", *checked)
    assert done.exit_code == 0, done.output
    assert "with prompt of more than 30 tokens: row" in done.output and "not checked" not in done.output

    config = OmegaConf.create({"max_prompt_length": 30, "cache_dir": str(tmp_path), "filter_overlong_prompts": True})
    config.filter_overlong_prompts_workers = 1
    verls = RLHFDataset(str(tmp_path / "everything.parquet"), tokenizer=tokenizer, config=config)
    kept = [e["index"] for e in pq.read_table(tmp_path / "short.parquet")["extra_info"].to_pylist()]
    assert kept == [e["index"] for e in verls.dataframe["extra_info"]] and 0 < len(kept) < 40

    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="--tokenizer .*empty: "):
        load_tokenizer(str(tmp_path / "empty"))


# --- the hub ------------------------------------------------------------------------------------------------------


def test_without_a_network_the_id_and_the_other_way_are_named_at_once(tmp_path) -> None:
    # A closed port of this machine in the hub's place: the same on a machine with a network.
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    run = [sys.executable, "-c", "from cw_grpo.cli import app; app()", "data", "all", "--out", str(tmp_path / "out")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    for benchmark in benchmarks().values():
        assert f"error: {benchmark.name}: could not load {benchmark.id} " in done.stderr
    assert "--from FILE" in done.stderr and "Traceback" not in done.stderr and "Retrying" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_hub_answer_of_another_size_is_an_error_unless_it_is_wanted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cw_grpo.datasets.benchmarks.read_hub", lambda benchmark: ROWS[:39])
    refused = command("amc23", "--out", tmp_path)
    assert refused.exit_code == 2 and "knoveleng/AMC-23 has 39 rows, where the paper's amc23 has 40" in refused.output
    assert not list(tmp_path.iterdir())
    assert command("amc23", "--out", tmp_path, "--any-size").exit_code == 0
    assert (tmp_path / "amc23.parquet").is_file()
