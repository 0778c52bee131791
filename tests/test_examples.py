# SPDX-License-Identifier: Apache-2.0
"""Every example runs, and says what its text promises.

Those of other trainers need them, in a directory of their own; the tests of one that is missing are skipped:

pip install --no-deps --target DIR trl==1.16.0 skyrl==0.3.0 skyrl-gym==0.4.0 jaxtyping loguru
PYTHONPATH=DIR python -m pytest tests/test_examples.py
"""

from __future__ import annotations

import re
import runpy
import string
import subprocess
import sys
import typing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import reference
import torch
import typing_extensions
from torch.nn.utils.rnn import pad_sequence

EXAMPLES = Path(__file__).parents[1] / "examples"
needs_trl = pytest.mark.skipif(not find_spec("trl"), reason="trl is not installed: see the top of this file")
needs_skyrl = pytest.mark.skipif(not find_spec("skyrl"), reason="skyrl is not installed: see the top of this file")


def test_weights(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "weights.py"))
    numbers = re.findall(r"\d+\.\d*", capsys.readouterr().out)
    printed = np.array(numbers, dtype=float).reshape(found["mask"].shape)
    assert printed.sum() == pytest.approx(found["mask"].sum().item(), abs=0.05)  # the mean over the group is 1
    assert printed.min() == 0 and printed[0, 2] < 0.05  # masked; and the token that was hardly expected


@needs_trl
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="a batch a step"),
        pytest.param({"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 4}, id="two steps"),
    ],
)
def test_trl(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advantages in TRL's loss are A_i w_it of arXiv 2605.11538, for the policy that sampled."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(EXAMPLES)
    example = import_module("trl_grpo")
    steps = []

    class Recorded(example.CovarianceGRPOTrainer):
        def _compute_loss(self, model, inputs):
            state = {name: value.clone() for name, value in model.state_dict().items()}
            loss = super()._compute_loss(model, inputs)
            steps.append((model.config, state, dict(inputs), loss.item()))
            return loss

    monkeypatch.setattr(example, "CovarianceGRPOTrainer", Recorded)
    example.main(**options)
    parts = options.get("steps_per_generation", 1)
    assert len(steps) == 2 * parts
    for start in range(0, len(steps), parts):
        config, state, first, loss = steps[start]
        rows = {
            name: torch.cat([inputs[name] for *_, inputs, _ in steps[start : start + parts]])
            for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
        }
        mask = rows["completion_mask"].bool()
        plain, expected = of_the_paper(config, state, rows)
        assert rows["advantages"].numpy() == pytest.approx(expected, abs=1e-4)
        assert np.abs(expected - plain)[mask].max() > 0.1
        # Nothing was updated since: the ratio is 1, and TRL's default loss is a mean over tokens.
        of_first = expected[: len(first["advantages"])]
        assert loss == pytest.approx(-of_first.sum() / (mask.sum().item() / parts), abs=1e-4)


def of_the_paper(config, state: dict, rows: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) A_i and A_i w_it from what was sampled: a model of transformers as it comes, and slow loops."""
    from transformers import LlamaForCausalLM

    mask = rows["completion_mask"].bool()
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    ids, attention = (torch.cat([rows[f"prompt_{of}"], rows[f"completion_{of}"]], 1) for of in ("ids", "mask"))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    log_probs = logits.log_softmax(-1).gather(-1, rows["completion_ids"].unsqueeze(-1)).squeeze(-1)
    letters = [
        [string.ascii_lowercase[i - 2] for i in row[valid] if i >= 2]
        for row, valid in zip(rows["completion_ids"], mask, strict=True)
    ]
    rewards = [sum(letter in "aeiou" for letter in of) / max(len(of), 1) for of in letters]
    prompts = [tuple(row) for row in rows["prompt_ids"].tolist()]
    assert sorted(map(prompts.count, prompts)) == [4] * 8
    advantages = reference.advantages(rewards, prompts, epsilon=1e-4)
    weighted = reference.weighted_advantages(log_probs.tolist(), advantages, mask.tolist(), prompts)
    return np.array(advantages)[:, None] * mask.numpy(), np.array(weighted)


@needs_trl
def test_trl_rejects_groups_that_lie_on_two_processes() -> None:
    code = "import trl_grpo; trl_grpo.main(per_device_train_batch_size=2)"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, timeout=500
    )
    assert done.returncode != 0
    assert "a process has 2 completions, not whole groups of 4; change the batch" in done.stderr, done.stderr[-3000:]


@pytest.fixture
def skyrl(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if sys.version_info < (3, 12):  # SkyRL's classes for pydantic use typing's, which pydantic rejects before 3.12
        monkeypatch.setattr(typing, "TypedDict", typing_extensions.TypedDict)
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module("skyrl_grpo")


@needs_skyrl
@pytest.mark.parametrize("rollout", [False, True], ids=["policy", "rollout"])
@pytest.mark.parametrize("cuts", [0, 2], ids=["rows", "steps"])
def test_skyrl(cuts: int, rollout: bool, skyrl: ModuleType) -> None:
    """SkyRL's trainer on a batch with padding, whose trajectories are rows or, with ``cuts``, some rows each."""
    from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch, pad_training_input_batch

    settings = {
        "generator.step_wise_trajectories": str(cuts > 0).lower(),
        "generator.inference_engine.enable_ray_prometheus_stats": "false",  # asks Ray
    }
    cfg = skyrl.SkyRLTrainConfig.from_cli_overrides(settings)
    parts = dict.fromkeys(("tracker", "tokenizer", "train_dataset", "inference_engine_client", "generator"))
    trainer = object.__new__(skyrl.Experiment).get_trainer(cfg=cfg, **parts)

    rng = np.random.default_rng(0)
    groups = ["a", "a", "a", "b", "b", "b", "b"]
    lengths = rng.integers(4, 9, len(groups))
    log_probs = [-rng.exponential(size=n) for n in lengths]
    masks = [rng.random(n) < 0.8 for n in lengths]
    masks[2][:] = False  # as SkyRL's filter of long responses leaves one
    rewards = rng.random(len(groups)).round(2)
    cut = [np.split(np.arange(n), sorted(rng.choice(np.arange(1, n), cuts, replace=False))) for n in lengths]
    rows = [(i, part) for i, of in enumerate(cut) for part in of]
    last = [part is cut[i][-1] for i, part in rows]

    def padded(values: list) -> torch.Tensor:
        return pad_sequence([torch.tensor(of) for of in values], batch_first=True).float()

    scores = [np.zeros(len(part)) for _, part in rows]
    for score, (i, _), end in zip(scores, rows, last, strict=True):
        score[-1] = rewards[i] * end
    batch = TrainingInputBatch(
        {
            "response_mask": padded([np.ones(len(part)) for _, part in rows]),
            "loss_mask": padded([masks[i][part] for i, part in rows]),
            "rewards": padded(scores),
            "values": None,
            "action_log_probs": None if rollout else padded([log_probs[i][part] for i, part in rows]),
            "rollout_logprobs": padded([log_probs[i][part] for i, part in rows]),
        }
    )
    batch.metadata = {"uids": [groups[i] for i, _ in rows], "avg_response_length": 6.0, "is_last_step": last}
    batch = pad_training_input_batch(batch, 2)

    found = trainer.compute_advantages_and_returns(batch)["advantages"]
    advantages = reference.advantages(list(rewards), groups)
    expected = reference.weighted_advantages(log_probs, advantages, [list(mask) for mask in masks], groups)
    for row, (i, part) in zip(found, rows, strict=False):
        assert row[: len(part)].numpy() == pytest.approx(np.array(expected[i])[part], abs=1e-5)
    assert not found[len(rows) :].any()
    plain = np.concatenate([np.full(n, a) for n, a in zip(lengths, advantages, strict=True)])
    assert np.abs(np.concatenate(expected) - plain)[np.concatenate(masks)].max() > 0.1
