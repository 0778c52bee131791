# SPDX-License-Identifier: Apache-2.0
"""The sums of `docs/gpus.md`, and the sizes that they start from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jobs import cached_plan
from transformers import LlamaConfig, Qwen2Config

from cw_grpo.job.footprint import (
    ModelSize,
    checkpoint_bytes,
    checkpoints_at_once,
    gpu_memory,
    model_size,
    uncounted,
)

PAGE = (Path(__file__).parents[2] / "docs" / "gpus.md").read_text(encoding="utf-8")
GB = 1e9

# Of the config.json of Qwen2.5-Math-7B-Instruct and of DeepSeek-R1-Distill-Qwen-1.5B.
CONFIGS = {
    "qwen7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "qwen1_5b": Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    ),
}
COLUMNS = {
    "7B, 4 GPUs": ("scale=qwen7b", "cluster=1node"),
    "7B, 4 of 141 GB": ("scale=qwen7b", "cluster=1node_h200"),
    "7B, 8 GPUs": ("scale=qwen7b", "cluster=1node8"),
    "1.5B, 4 GPUs": ("scale=qwen1_5b", "cluster=1node"),
    "1.5B, 1 GPU": ("scale=qwen1_5b", "cluster=1gpu"),
    "1.5B, 1 GPU, sdpa": ("scale=qwen1_5b", "cluster=1gpu", "attention=sdpa"),
}


ACTOR, FSDP = "actor_rollout_ref.actor", "actor_rollout_ref.actor.fsdp_config"


@pytest.fixture(scope="module")
def sizes(tmp_path_factory) -> dict[str, ModelSize]:
    found = {}
    for name, config in CONFIGS.items():
        directory = tmp_path_factory.mktemp(name)
        config.save_pretrained(directory)
        found[name] = model_size(str(directory))
    return found


def test_parameters_are_counted_from_the_config_alone(sizes) -> None:
    """As the models' cards and safetensors files have it: 7.62 and 1.78 billion."""
    assert sizes["qwen7b"].parameters == 7_615_616_512
    assert sizes["qwen1_5b"].parameters == 1_777_088_000


def table_of_memory() -> dict[str, dict[str, float]]:
    """The page's numbers by column and row."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    (start,) = (i for i, line in enumerate(lines) if "7B, 4 of 141 GB" in line)
    names = [cell.strip() for cell in lines[start].strip("|").split("|")][2:]
    table: dict[str, dict[str, float]] = {name: {} for name in names}
    for line in lines[start + 2 :]:
        if line.startswith("|---"):
            break
        head, _, *cells = (cell.strip().strip("*") for cell in line.strip("|").split("|"))
        for name, cell in zip(names, cells, strict=False):
            if re.fullmatch(r"[\d.,]+", cell):
                table[name][head] = float(cell.replace(",", ""))
    return table


@pytest.mark.parametrize("column", COLUMNS)
def test_the_table_of_the_docs_is_what_preflight_computes(column: str, sizes) -> None:
    overrides = COLUMNS[column]
    memory = gpu_memory(sizes[overrides[0].partition("=")[2]], cached_plan(*overrides).config)
    total = 141e9 if "141" in column else 80e9
    utilization = cached_plan(*overrides).config.actor_rollout_ref.rollout.gpu_memory_utilization
    computed = {
        "parameters, gradients, Adam": memory.state,
        "an unsharded layer, embedding and head": memory.gathered + memory.gathered_gradients,
        "inputs of the layers, kept": memory.kept,
        "one layer, computed again": memory.layer,
        "logits in the update": memory.logits,
        "update, sum": memory.update,
        "logits in the pass for old log-probs": memory.entropy,
        "old log-probs, sum": memory.old_log_probs,
        "parameters and Adam beside the rollout": sum(memory.resting.values()),
        "vLLM": utilization * total,
        "rollout, sum": memory.rollout(utilization, total),
    }
    shown = table_of_memory()[column]
    assert {row: shown[row] for row in computed} == {
        row: pytest.approx(value / GB, abs=0.5 if "sum" in row or row == "vLLM" else 0.051)
        for row, value in computed.items()
    }
    assert memory.update < total and memory.old_log_probs < total and memory.rollout(utilization, total) < total


def test_a_micro_batch_in_tokens(sizes) -> None:
    """At most 12 x 4,096 positions of the 7B model, shared by four GPUs; or what dynamic batches are told."""
    config = cached_plan("scale=qwen7b", "cluster=1node").config
    assert gpu_memory(sizes["qwen7b"], config).kept == 12 * 4096 // 4 * 3584 * 2 * 28
    dynamic = ("use_dynamic_bsz=true", "ppo_max_token_len_per_gpu=5000")
    config = cached_plan("scale=qwen7b", "cluster=1node", *(f"actor_rollout_ref.actor.{key}" for key in dynamic)).config
    assert gpu_memory(sizes["qwen7b"], config).kept == 5000 * 3584 * 2 * 28


@pytest.mark.parametrize(
    ("of_the_pass", "part"),
    [
        (("log_prob_micro_batch_size_per_gpu=6",), 1 / 2),
        (("log_prob_use_dynamic_bsz=true", "log_prob_max_token_len_per_gpu=24576"), 2),
    ],
)
def test_the_pass_for_old_log_probs_has_a_micro_batch_of_its_own(sizes, of_the_pass, part: float) -> None:
    base = ("scale=qwen7b", "cluster=1node")
    dynamic = (f"{ACTOR}.use_dynamic_bsz=true", f"{ACTOR}.ppo_max_token_len_per_gpu=12288") if part == 2 else ()
    settings = (*dynamic, *(f"actor_rollout_ref.rollout.{key}" for key in of_the_pass))
    both, own = (gpu_memory(sizes["qwen7b"], cached_plan(*base, *more).config) for more in ((), settings))
    assert (own.entropy, own.old_log_prob_layer) == (both.entropy * part, both.old_log_prob_layer * part)
    assert (own.layer, own.logits, own.kept) == (both.layer, both.logits, both.kept)


def test_a_sequence_shared_by_the_engines_own_key(sizes) -> None:
    settings = ("parallel.ulysses=1", f"{FSDP}.ulysses_sequence_parallel_size=4")
    both, own = (
        gpu_memory(sizes["qwen7b"], cached_plan("scale=qwen7b", "cluster=1node", *more).config)
        for more in ((), settings)
    )
    assert own == both


OFFLOAD = (f"{FSDP}.param_offload=true", f"{FSDP}.optimizer_offload=true")


@pytest.mark.parametrize(
    ("settings", "update", "old_log_probs", "rollout"),
    [
        ((), 16, 12, 12),
        (OFFLOAD[:1], 16, 12, 8),
        (OFFLOAD[1:], 16, 4, 4),
        (OFFLOAD, 16, 4, 0),
        ((f"{FSDP}.offload_policy=true",), 0, 0, 0),
        ((f"{FSDP}.offload_policy=true", f"{ACTOR}.strategy=fsdp"), 16, 12, 12),  # FSDP1 has no such policy
        (("actor_rollout_ref.model.lora_rank=32",), 4, 4, 4),
        (("actor_rollout_ref.model.lora.rank=32",), 16, 12, 12),  # Megatron's key, which FSDP does not read
        ((f"{FSDP}.model_dtype=bf16",), 8, 6, 6),
    ],
)
def test_bytes_per_parameter_in_each_phase(sizes, settings, update: int, old_log_probs: int, rollout: int) -> None:
    size = sizes["qwen1_5b"]
    memory = gpu_memory(size, cached_plan("scale=qwen1_5b", "cluster=1gpu", *settings).config)
    passing = memory.old_log_probs - memory.gathered - memory.old_log_prob_layer - memory.entropy
    found = (memory.state, passing, memory.rollout(0.0, 0))
    assert found == tuple(each * size.parameters for each in (update, old_log_probs, rollout))


def test_verl_loads_back_for_a_phase_what_it_offloads() -> None:
    from verl.workers.engine.base import BaseEngineCtx

    class Engine:
        is_param_offload_enabled = is_optimizer_offload_enabled = True

        def to(self, **moved: object) -> None:
            moves.append((moved["model"], moved["optimizer"]))

    moves: list[tuple[object, object]] = []
    for mode in ("train", "eval"):
        with BaseEngineCtx(Engine(), mode):
            pass
    assert moves == [(True, True)] * 2 + [(True, False)] * 2  # onto the GPU, and off it


@pytest.mark.parametrize("fsdp_size", [-1, 2, 8, 16])
def test_a_hybrid_is_sharded_over_the_gpus_that_verl_shards_over(sizes, fsdp_size: int) -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from verl.workers.engine.fsdp.utils import create_device_mesh

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        shards = create_device_mesh(8, fsdp_size)["fsdp"].size()
    finally:
        dist.destroy_process_group()
    config = cached_plan("scale=qwen7b", "cluster=1node8", f"{FSDP}.fsdp_size={fsdp_size}").config
    assert gpu_memory(sizes["qwen7b"], config).state == 4 * (4 * sizes["qwen7b"].parameters // shards)


@pytest.mark.parametrize(
    "setting",
    [
        "actor_rollout_ref.actor.optim.optimizer=AdamW8bit",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
        "actor_rollout_ref.rollout.name=sglang",
        "trainer.v1.trainer_mode=separate_async",
    ],
)
def test_settings_that_the_sums_do_not_know_are_named(sizes, setting: str) -> None:
    config = cached_plan("scale=qwen7b", "cluster=1node", setting).config
    assert uncounted(config) == [setting.lstrip("+")]
    assert gpu_memory(sizes["qwen7b"], config) is None


def test_a_megatron_job_has_another_memory(sizes) -> None:
    config = cached_plan("scale=qwen7b", "cluster=1node", "model_engine=megatron").config
    assert "actor_rollout_ref.actor.strategy=megatron" in uncounted(config)
    assert gpu_memory(sizes["qwen7b"], config) is None


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ((), 2),
        (("trainer.max_actor_ckpt_to_keep=3",), 2),
        (("trainer.max_actor_ckpt_to_keep=3", "trainer.save_freq=10"), 3),
        (("trainer.max_actor_ckpt_to_keep=null", "trainer.save_freq=10"), 10),
        (("trainer.save_freq=100",), 1),
        (("trainer.save_freq=-1",), 0),
    ],
)
def test_checkpoints_on_the_disk_at_once(settings: tuple[str, ...], number: int) -> None:
    """Of 100 steps, saved every 50: verl deletes the only one after the next, and one of several before it."""
    assert checkpoints_at_once(cached_plan("scale=qwen7b", "cluster=1node", *settings).config) == number


@pytest.mark.parametrize(
    ("settings", "gigabytes"),
    [
        ((), 91.4),
        ((f"{FSDP}.model_dtype=bf16",), 45.7),
        (("actor_rollout_ref.model.lora_rank=32",), 30.5),
        ((f"{FSDP}.fsdp_size=2",), 182.8),
    ],
)
def test_a_checkpoint_of_the_7b_model(settings: tuple[str, ...], gigabytes: float) -> None:
    """With LoRA, Adam has moments of the adapters alone. Every GPU of a hybrid of 2 x 2 saves its shard."""
    config = cached_plan("scale=qwen7b", "cluster=1node", *settings).config
    assert checkpoint_bytes(7_615_616_512, config) == pytest.approx(gigabytes * 1e9, rel=2e-3)


def test_a_tied_head_is_no_parameter_of_its_own(tmp_path) -> None:
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    layer = 4 * 32 * 32 + 3 * 32 * 96 + 2 * 32
    assert model_size(str(tmp_path)).parameters == 64 * 32 + 2 * layer + 32
