"""Data: verl's schema, wording, the same bytes for the same input, errors that say what there is."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import reasoning_gym
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.datasets.rows import SCHEMA, Prompt, default_prompt, parse_options, reasoning_gym_rows, write_rows

PROMPTS = Path(__file__).parents[2] / "recipe" / "cw_grpo" / "prompts"
SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


@pytest.fixture
def prompt(tmp_path) -> Prompt:
    path = tmp_path / "prompt.yaml"
    path.write_text('- {role: system, content: "Answer in \\\\boxed{}."}\n- {role: user, content: "{{ question }}"}\n')
    return Prompt(path)


def sums(prompt: Prompt, **changes):
    settings = {"size": 20, "seed": 3, "split": "train", "options": SUMS, **changes}
    return list(reasoning_gym_rows("chain_sum", prompt=prompt, **settings))


def test_rows_are_what_verl_reads(prompt, tmp_path) -> None:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from cw_grpo.job.models import character_tokenizer

    rows = sums(prompt)
    assert write_rows(rows, tmp_path / "train.parquet") == 20
    config = OmegaConf.create({"max_prompt_length": 256, "cache_dir": str(tmp_path), "filter_overlong_prompts": False})
    dataset = RLHFDataset(str(tmp_path / "train.parquet"), tokenizer=character_tokenizer(), config=config)
    assert len(dataset) == 20
    row = dataset[7]
    assert row["data_source"] == "reasoning_gym/chain_sum"
    assert row["reward_model"] == {"style": "rule", "ground_truth": rows[7]["reward_model"]["ground_truth"]}
    assert row["raw_prompt"][0] == {"role": "system", "content": "Answer in \\boxed{}."}
    assert row["extra_info"]["index"] == 7 and row["extra_info"]["split"] == "train"


def test_answers_are_right_by_the_tasks_own_judge(prompt) -> None:
    dataset = reasoning_gym.create_dataset("chain_sum", size=20, seed=3, **SUMS)
    for row, entry in zip(sums(prompt), dataset, strict=True):
        assert row["extra_info"]["question"] == entry["question"]
        assert dataset.score_answer(row["reward_model"]["ground_truth"], entry) == 1.0


def test_the_same_input_gives_the_same_bytes_and_another_seed_does_not(prompt, tmp_path) -> None:
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for file, seed in zip(files, (3, 3, 1000), strict=True):
        write_rows(sums(prompt, seed=seed), file)
    a, b, c = (file.read_bytes() for file in files)
    assert a == b != c


def test_a_failure_leaves_neither_file_nor_remains(prompt, tmp_path) -> None:
    out = tmp_path / "out" / "train.parquet"
    rows = sums(prompt)
    rows[5]["reward_model"]["ground_truth"] = object()
    with pytest.raises(Exception, match="object"):
        write_rows(rows, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(b"earlier")
    with pytest.raises(Exception, match="object"):
        write_rows(rows, out)
    assert out.read_bytes() == b"earlier" and len(list(out.parent.iterdir())) == 1


@pytest.mark.parametrize("name", sorted(path.name for path in PROMPTS.glob("*.yaml")))
def test_each_wording_of_the_recipe_fits_the_sums(name: str) -> None:
    row = sums(Prompt(PROMPTS / name))[0]
    question = row["extra_info"]["question"]
    content = row["prompt"][-1]["content"]
    assert question in content or question.split(": ")[1].removesuffix(" =") in content
    assert "{{" not in str(row["prompt"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not YAML"),
        ("role: user", "must be a list of messages"),
        ('- {role: teacher, content: "{{ question }}"}', "must be a list of messages with role"),
        ('- {role: user, content: "{{ question"}', "prompt .*prompt.yaml: "),
        ("- {role: user, content: hello}", "leaves no room for the question"),
    ],
)
def test_a_bad_wording_is_refused_by_its_file(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Prompt(path)


def test_a_value_that_the_task_lacks_is_named_with_those_it_has(tmp_path) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text('- {role: user, content: "{{ riddle }}"}')
    with pytest.raises(ValueError, match="'riddle' is undefined; the data offers: .*expression.*question"):
        sums(Prompt(path))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("chain_sums", {}, "no task 'chain_sums'; for instance: chain_sum"),
        ("chain_sum", {"size": 0}, "size must be at least 1, got 0"),
        ("chain_sum", {"options": {"terms": 3}}, "no option terms; its options are: min_terms, max_terms"),
        ("chain_sum", {"options": {"min_terms": 0}}, "task chain_sum refuses {'min_terms': 0}: "),
    ],
)
def test_a_task_that_cannot_be_made_says_why(prompt, task: str, changes: dict, message: str) -> None:
    settings = {"size": 5, "seed": 0, "split": "train", "options": {}, **changes}
    with pytest.raises(ValueError, match=message):
        list(reasoning_gym_rows(task, prompt=prompt, **settings))


def test_options_of_the_command_line_are_yaml_values() -> None:
    assert parse_options(["min_terms=2", "operators=['+', '-']", "allow_negation=false", "symbol="]) == {
        "min_terms": 2,
        "operators": ["+", "-"],
        "allow_negation": False,
        "symbol": None,
    }
    for given, message in ((["min_terms"], "key=value"), (["a=1", "a=2"], "given twice"), (["a=["], "not a YAML")):
        with pytest.raises(ValueError, match=message):
            parse_options(given)


def test_the_command(tmp_path) -> None:
    out = tmp_path / "train.parquet"
    command = ["data", "reasoning-gym", "--task=chain_sum", "--size=4", "--seed=9", f"--out={out}"]
    done = CliRunner().invoke(app, [*command, "--set", "min_terms=2", "--set", "max_terms=2"])
    assert done.exit_code == 0, done.output
    table = pq.read_table(out)
    assert table.num_rows == 4 and table.schema.equals(SCHEMA)
    assert "\\boxed{}" in table["prompt"][0].as_py()[-1]["content"]
    assert default_prompt().is_file()

    failed = CliRunner().invoke(app, [*command, "--set", "terms=2"])
    assert failed.exit_code == 2
    assert "error: task chain_sum has no option terms" in failed.output
