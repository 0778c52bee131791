# SPDX-License-Identifier: Apache-2.0
"""The reward in verl's own reward loop: real actors under Ray, a thousand hostile outputs among ordinary neighbours."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reward_hostile

ray = pytest.importorskip("ray")

ROOT = Path(__file__).parents[1]
REWARD = ROOT / "recipe" / "cw_grpo" / "reward.py"
START_SECONDS = 4.0
"""Processor seconds of one comparing process until it is ready, at most."""
MEMORY_LIMIT = 2 << 30


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer without merges: it encodes and decodes any text without loss."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(folder)
    return folder


def job_config(tokenizer: Path, workers: int = 2, **reward_kwargs):
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[
                f"actor_rollout_ref.model.path={tokenizer}",
                f"reward.num_workers={workers}",
                f"reward.custom_reward_function.path={REWARD}",
                *(f"+reward.custom_reward_function.reward_kwargs.{k}={v}" for k, v in reward_kwargs.items()),
            ],
        )
    return config


def as_data(output: reward_hostile.Output, tokenizer):
    import torch
    from tensordict import TensorDict
    from verl import DataProto

    ids = torch.tensor([tokenizer.encode(output.response) or [tokenizer.eos_token_id]])
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    batch = TensorDict(
        {"prompts": prompt, "responses": ids, "attention_mask": torch.ones(1, 1 + ids.shape[1], dtype=torch.int64)}, 1
    )
    return DataProto(
        batch=batch,
        non_tensor_batch={
            "data_source": np.array(["math"], dtype=object),
            "reward_model": np.array([{"ground_truth": output.reference}], dtype=object),
        },
    )


class Family:
    """The comparing processes below some actors: their processor seconds, and the most memory one of them took."""

    def __init__(self, actor_pids: list[int]) -> None:
        self.actor_pids, self.seen, self.seconds, self.peak = actor_pids, {}, {}, 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        import psutil

        while not self.stopped.wait(0.1):
            for pid in self.actor_pids:
                try:
                    for child in psutil.Process(pid).children():
                        self.seen[child.pid] = child
                        self.seconds[child.pid] = sum(child.cpu_times()[:2])
                        self.peak = max(self.peak, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    def alive(self) -> list:
        return [child for child in self.seen.values() if child.is_running()]


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=4, include_dashboard=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )
    yield
    ray.shutdown()


def run(mixed: list[reward_hostile.Output], folder: Path, **reward_kwargs) -> dict:
    """Score outputs one by one by two of verl's reward workers, four at a time; say what came of it."""
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop import RewardLoopManager

    path = byte_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(path)
    manager = RewardLoopManager(job_config(path, **reward_kwargs))
    workers = manager.reward_loop_workers
    pids = ray.get([worker.__ray_call__.remote(lambda self: os.getpid()) for worker in workers])
    family = Family(pids)
    waiting, results, crashes, position = {}, {}, [], 0
    while position < len(mixed) or waiting:
        while position < len(mixed) and len(waiting) < 2 * len(workers):
            data = as_data(mixed[position], tokenizer)
            reference = workers[position % len(workers)].compute_score.remote(data)
            waiting[reference] = position
            position += 1
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        index = waiting.pop(done)
        try:
            results[index] = ray.get(done)["reward_extra_info"]
        except Exception as e:
            crashes.append((mixed[index], e))
    for worker in workers:
        ray.kill(worker)
    deadline = time.monotonic() + 15
    while family.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    family.stopped.set()
    neighbours = [i for i, output in enumerate(mixed) if output.reference != reward_hostile.REFERENCE]
    return {
        "outputs": len(mixed),
        "hostile": len(mixed) - len(neighbours),
        "processor_seconds": sum(family.seconds.values()),
        "hang_seconds": reward_kwargs.get("cpu_seconds", 2) + 1 + START_SECONDS,
        "crashes": crashes,
        "timeouts": sum(info["timeout"] for info in results.values()),
        "wrong_neighbours": [mixed[i] for i in neighbours if i in results and results[i]["acc"] != mixed[i].acc],
        "accepted": [mixed[i] for i, info in results.items() if i not in neighbours and info["acc"]],
        "keys": {tuple(info) for info in results.values()},
        "processes": len(family.seen),
        "peak_memory": family.peak,
        "left_behind": [child.pid for child in family.alive()],
    }


LISTS = ("crashes", "wrong_neighbours", "accepted", "left_behind")


def report(result: dict) -> str:
    return ", ".join(f"{k}: {len(v) if k in LISTS else v}" for k, v in result.items())


def good(result: dict) -> bool:
    """Does a run reach what the project asks for?"""
    return (
        not any(result[name] for name in LISTS)
        and result["processor_seconds"]
        <= result["timeouts"] * result["hang_seconds"] + 0.05 * result["outputs"] + 4 * START_SECONDS
        and 0 < result["peak_memory"] <= MEMORY_LIMIT
        and result["keys"] == {("score", "acc", "format", "timeout", "no_answer", "bad_reference", "pred")}
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limits of the comparing processes are Linux's")
def test_a_thousand_hostile_outputs_among_ordinary_neighbours(cluster, tmp_path, capsys):
    mixed = reward_hostile.outputs(count=1000, hangs=10)
    result = run(mixed, tmp_path, cpu_seconds=1, timeout=5)
    with capsys.disabled():
        print("\n" + report(result))
    assert result["hostile"] >= 1000
    assert good(result), result


def test_settings_reach_the_workers_and_mistakes_in_them_are_loud(cluster, tmp_path):
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop import RewardLoopManager

    path = byte_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(path)
    data = as_data(reward_hostile.Output("\\boxed{5}", "5", 1.0), tokenizer)

    def score(**reward_kwargs):
        worker = RewardLoopManager(job_config(path, workers=1, **reward_kwargs)).reward_loop_workers[0]
        try:
            return ray.get(worker.compute_score.remote(data))["reward_score"]
        finally:
            ray.kill(worker)

    assert score(require_think=False, accuracy_weight=0.5) == 0.5
    with pytest.raises(ray.exceptions.RayTaskError, match="unknown \\['wieght'\\]"):
        score(wieght=1)
