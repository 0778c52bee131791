# SPDX-License-Identifier: Apache-2.0
"""How a batch is cut over GPUs: what verl's workers would refuse is refused before they start."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from jobs import LOSS, job, validate
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.utils import prepare_micro_batches

from cw_grpo.checks.layout import Layout, fsdp_ulysses, layout_problem, read_layout

ACTOR = "actor_rollout_ref.actor."
ROLLOUT = "actor_rollout_ref.rollout."
ULYSSES_4 = f"{ACTOR}ulysses_sequence_parallel_size=4"
REFERENCE_OF_7 = (f"{ACTOR}use_kl_loss=true", "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=7")
ROLLOUT_OF_5 = f"{ROLLOUT}log_prob_micro_batch_size_per_gpu=5"
BYPASS = "algorithm.rollout_correction.bypass_mode=true"


def paper(*overrides: str, micro: int = 12) -> DictConfig:
    """12 prompts x 12 responses, weighted by the estimator."""
    return job(
        "algorithm.adv_estimator=cw_grpo",
        *("data.train_batch_size=12", f"{ACTOR}ppo_mini_batch_size=12", f"{ROLLOUT}n=12"),
        *(f"{ACTOR}ppo_micro_batch_size_per_gpu={micro}", f"{ROLLOUT}log_prob_micro_batch_size_per_gpu={micro}"),
        *overrides,
    )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        # verl's own validation lets these two pass.
        (
            ("trainer.n_gpus_per_node=8",),
            "8 data-parallel ranks of 18 rows each.*ppo_micro_batch_size_per_gpu=12 does not divide.*"
            "ulysses_sequence_parallel_size of 2, 4 or 8 .*; or 1, 2, 3, 4, 6 or 12 GPUs.*; "
            "or micro-batches of 1, 2, 3, 6, 9 or 18 rows.*use_dynamic_bsz=true",
        ),
        (("trainer.nnodes=2", "trainer.n_gpus_per_node=8"), "16 data-parallel ranks of 9 rows.*size of 4, 8 or 16 "),
        (
            ("trainer.n_gpus_per_node=8", f"{ACTOR}use_dynamic_bsz=true", f"{ACTOR}ulysses_sequence_parallel_size=3"),
            "3 GPUs share a sequence.*does not divide 8 GPUs",
        ),
        (
            ("trainer.n_gpus_per_node=5", f"{ACTOR}use_dynamic_bsz=true"),
            "5 data-parallel ranks, which do not divide the 144 rows of an update",
        ),
        (
            (LOSS + "cw_grpo_live", "algorithm.adv_estimator=grpo", "trainer.n_gpus_per_node=8"),
            "policy loss cw_grpo_live needs whole groups on each: they do not divide the 12 groups",
        ),
        (
            (f"{ROLLOUT}log_prob_micro_batch_size_per_gpu=5",),
            "1 data-parallel ranks of 144 rows each, which .*rollout.log_prob_micro_batch_size_per_gpu=5 does not",
        ),
        (
            (f"{ACTOR}use_kl_loss=true", "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=7"),
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=7 does not divide",
        ),
    ],
)
def test_what_the_workers_would_refuse_is_named_with_what_would_work(overrides: tuple[str, ...], says: str) -> None:
    config = paper(*overrides)
    with pytest.raises(ValueError, match=says):
        validate(config)


def test_32_gpus_are_too_many_for_144_rows() -> None:
    config = paper("trainer.nnodes=4", "trainer.n_gpus_per_node=8", ULYSSES_4)
    assert "32 GPUs" in layout_problem(config) and "4, 8, 12, 16, 24 or 48 GPUs" in layout_problem(config)
    with pytest.raises(AssertionError, match="must be divisible by minimal possible batch size"):
        validate(config)
    validate(paper("trainer.nnodes=4", "trainer.n_gpus_per_node=8", f"{ACTOR}use_dynamic_bsz=true", ULYSSES_4))


def test_a_job_without_the_method_is_left_to_verl() -> None:
    config = paper("algorithm.adv_estimator=grpo", "trainer.n_gpus_per_node=8")
    assert layout_problem(config) is not None
    validate(config)


def test_a_pass_that_does_not_run_is_not_looked_at() -> None:
    assert layout_problem(paper(BYPASS, ROLLOUT_OF_5)) is None


def test_an_asynchronous_batch_is_a_part_of_the_batch() -> None:
    config = paper("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=2")
    assert read_layout(config).prompts == 6


def test_verl_compares_the_whole_of_an_asynchronous_batch_with_the_gpus() -> None:
    """A part has 36 rows, which 8 GPUs do not divide; they are two ranks."""
    mode = ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4")
    config = paper(*mode, f"{ACTOR}ppo_mini_batch_size=3", "trainer.n_gpus_per_node=8", ULYSSES_4, micro=6)
    assert layout_problem(config) is None
    validate(config)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ((*REFERENCE_OF_7, "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=true"), None),
        (
            (*REFERENCE_OF_7, f"{ACTOR}use_dynamic_bsz=true", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"),
            "ref.log_prob_micro_batch_size_per_gpu=7",
        ),
        # With LoRA the actor computes the reference, in its own micro-batches.
        ((*REFERENCE_OF_7, "actor_rollout_ref.model.lora_rank=8"), None),
        (
            (*REFERENCE_OF_7, "actor_rollout_ref.model.lora_rank=8", BYPASS, ROLLOUT_OF_5),
            "rollout.log_prob_micro_batch_size_per_gpu=5",
        ),
    ],
)
def test_the_reference_has_micro_batches_of_its_own(overrides: tuple[str, ...], problem: str | None) -> None:
    found = layout_problem(paper(*overrides))
    assert (found is None) if problem is None else (problem in found and "micro-batches of 1, 2, 3" in found)


def test_a_reference_without_a_micro_batch_is_left_to_verl() -> None:
    dynamic = (f"{ACTOR}use_dynamic_bsz=true", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false")
    assert read_layout(paper(f"{ACTOR}use_kl_loss=true", *dynamic)) is None


@pytest.mark.parametrize(("old", "new", "shared"), [(1, 4, 4), (2, 1, 2), (2, 4, 2)])
def test_gpus_that_share_a_sequence_are_those_of_verls_engine(old: int, new: int, shared: int) -> None:
    keys = ("ulysses_sequence_parallel_size", "fsdp_config.ulysses_sequence_parallel_size")
    config = paper(*(f"{ACTOR}{key}={value}" for key, value in zip(keys, (old, new), strict=True)))
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).engine.ulysses_sequence_parallel_size == shared
    assert fsdp_ulysses(config) == read_layout(config).shared == shared


@given(
    prompts=st.integers(1, 12), n=st.integers(1, 6), ranks=st.sampled_from([1, 2, 3, 4, 6, 8]), micro=st.integers(1, 12)
)
def test_the_verdict_is_that_of_verls_workers(prompts: int, n: int, ranks: int, micro: int) -> None:
    """verl's two assertions: of `train_mini_batch` on the ranks, and of its own cut into micro-batches."""
    layout = Layout(
        **{"gpus": ranks, "shared": 1, "shared_keys": (f"{ACTOR}ulysses_sequence_parallel_size",), "loss": None},
        **{
            "prompts": prompts,
            "whole_batch": prompts,
            "mini_batch": prompts,
            "n": n,
            "micro": micro,
            "log_prob": (("a key", micro),),
        },
    )
    fits = (prompts * n) % ranks == 0
    if fits:
        rows = TensorDict({"x": torch.arange(prompts * n // ranks)}, batch_size=[prompts * n // ranks])
        tu.assign_non_tensor(rows, use_dynamic_bsz=False, micro_batch_size_per_gpu=micro)
        try:
            prepare_micro_batches(rows)
        except AssertionError:
            fits = False
    assert (layout.problem() is None) == fits
