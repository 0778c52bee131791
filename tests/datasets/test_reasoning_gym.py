# SPDX-License-Identifier: Apache-2.0
"""Questions of reasoning-gym: the same bytes for the same input, errors that list what there is."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import reasoning_gym
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.cli.data import parse_options
from cw_grpo.datasets.prompts import Prompt, default_prompt
from cw_grpo.datasets.reasoning_gym import reasoning_gym_rows
from cw_grpo.datasets.rows import SCHEMA, prompt_values, write_rows

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


def test_answers_are_right_by_the_tasks_own_judge(prompt) -> None:
    dataset = reasoning_gym.create_dataset("chain_sum", size=20, seed=3, **SUMS)
    for row, entry in zip(sums(prompt), dataset, strict=True):
        assert row["extra_info"]["question"] == entry["question"]
        assert prompt_values(row["extra_info"])["expression"] == entry["metadata"]["expression"]
        assert dataset.score_answer(row["reward_model"]["ground_truth"], entry) == 1.0


def test_the_same_input_gives_the_same_bytes_and_another_seed_does_not(prompt, tmp_path) -> None:
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for file, seed in zip(files, (3, 3, 1000), strict=True):
        write_rows(sums(prompt, seed=seed), file)
    a, b, c = (file.read_bytes() for file in files)
    assert a == b != c


@pytest.mark.parametrize("name", sorted(path.name for path in PROMPTS.glob("*.yaml")))
def test_each_wording_of_the_recipe_fits_the_sums(name: str) -> None:
    row = sums(Prompt(PROMPTS / name))[0]
    question = row["extra_info"]["question"]
    content = row["prompt"][-1]["content"]
    assert question in content or question.split(": ")[1].removesuffix(" =") in content
    assert "{{" not in str(row["prompt"])


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
        ("chain_sum", {"options": {"min_terms": 0}}, "task chain_sum rejects {'min_terms': 0}: "),
    ],
)
def test_a_task_that_cannot_be_made_says_why(prompt, task: str, changes: dict, message: str) -> None:
    settings = {"size": 5, "seed": 0, "split": "train", "options": {}, **changes}
    with pytest.raises(ValueError, match=message):
        list(reasoning_gym_rows(task, prompt=prompt, **settings))


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
