# SPDX-License-Identifier: Apache-2.0
"""A run is asked and scored as it was trained."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path

import pytest
import yaml
from made_scores import CHAT
from omegaconf import OmegaConf

from cw_grpo.datasets.prompts import Prompt, default_prompt
from cw_grpo.datasets.reasoning_gym import reasoning_gym_rows
from cw_grpo.datasets.rows import make_row, write_rows
from cw_grpo.evaluation import checkpoints, questions
from cw_grpo.evaluation.model_requests import OWN_PROMPT, ModelRequest, model_requests
from cw_grpo.job.plan import Plan, make_plan
from cw_grpo.paths import RECIPE

BOXED, MATHS = "What is 2 + 3?", "Compute $\\sqrt{16}$."


def trained(run: Path, **config: object) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"algorithm": {"adv_estimator": "cw_grpo"}, **config}))


@functools.cache
def eval_plan(overrides: tuple[str, ...]) -> Plan:
    return make_plan(overrides, config_name="eval")


def asked(
    tmp_path: Path, *models: str, prompt: str | None = None, overrides: tuple[str, ...] = ()
) -> list[ModelRequest]:
    """What the models are asked: one question, on a benchmark with a prompt of its own."""
    rows = [make_row("own", CHAT, "4", index=0, split="test", question=MATHS)]
    write_rows(rows, tmp_path / "own.parquet")
    plan = eval_plan(overrides)
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


@pytest.mark.parametrize("scale", ["tiny", "smollm2"])
def test_a_run_of_a_scale_is_asked_as_trained_on_questions_with_the_same_values(
    run_folder: Path, tmp_path: Path, scale: str
) -> None:
    config = make_plan([f"scale={scale}", "method=cw_grpo"]).config
    OmegaConf.save(config, run_folder / "config.yaml")
    sums = reasoning_gym_rows("chain_sum", size=3, seed=9, split="test", prompt=Prompt(default_prompt()))
    write_rows(sums, tmp_path / "sums.parquet")
    benchmark = questions.read("sums", tmp_path / "sums.parquet")
    plan = eval_plan(())
    [request] = model_requests(
        [checkpoints.parse(str(run_folder))], {"sums": benchmark}, plan.config, plan.config_dir, None
    )
    own = Prompt(RECIPE / "config" / config.prepare.prompt)
    for row, given in zip(request.asked["sums"].rows, benchmark.rows, strict=True):
        assert row.prompt == own.render({"expression": given.values["expression"]}) != given.prompt


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


def test_the_recipes_reward_of_another_checkout_is_the_same(run_folder: Path, tmp_path: Path) -> None:
    shutil.copy(RECIPE / "reward.py", tmp_path / "reward.py")
    function = {"path": str(tmp_path / "reward.py"), "reward_kwargs": {"require_think": False}}
    trained(run_folder, reward={"custom_reward_function": function})
    [run] = asked(tmp_path, str(run_folder))
    assert run.reward_kwargs == {"require_think": False}


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
