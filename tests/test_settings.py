# SPDX-License-Identifier: Apache-2.0
"""The settings that bear on CW-GRPO, checked on verl's own composed configuration."""

from __future__ import annotations

import re

import pytest
from jobs import LOSS, job, validate

from cw_grpo.settings import check_job, describe, equal_responses, job_config, notes

OURS = [pytest.param(name, marks=pytest.mark.losses) for name in ("cw_grpo_live", "cw_grpo_released")]


@pytest.mark.parametrize("loss", ["vanilla", *OURS])
@pytest.mark.parametrize("estimator", ["grpo", "cw_grpo", "rloo"])
def test_jobs_that_fit_pass_verls_own_validation(estimator: str, loss: str) -> None:
    validate(job(f"algorithm.adv_estimator={estimator}", LOSS + loss))


def test_the_option_composes_and_passes() -> None:
    validate(job("algorithm.adv_estimator=cw_grpo", "+algorithm.cw_grpo.log_prob_mean=group"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ("algorithm.adv_estimator=cw_grpo", "+algorithm.cw_grpo.logprob_mean=group"),
            r"algorithm\.cw_grpo\.logprob_mean is not an option.*log_prob_mean",
        ),
        (("algorithm.adv_estimator=cw_grpo", "+algorithm.cw_grpo.log_prob_mean=token"), "'token'.*response, group"),
        (("algorithm.adv_estimator=cw_grpo", "+algorithm.cw_grpo=group"), "log_prob_mean.*'group'"),
        (
            (
                "algorithm.adv_estimator=cw_grpo",
                "+algorithm.cw_grpo.centre=true",
                "+algorithm.cw_grpo.log_prob_mean=group",
            ),
            r"cw_grpo\.centre=true needs .*log_prob_mean=response",
        ),
        (
            ("algorithm.adv_estimator=grpo", LOSS + "cw_grpo_live", "+algorithm.cw_grpo.centre=true"),
            r"cw_grpo\.centre=true is an option of the estimator.*cw_grpo_live",
        ),
        (("algorithm.adv_estimator=grpo", "+algorithm.cw_grpo.log_prob_mean=group"), "no effect.*adv_estimator=grpo"),
        (
            ("algorithm.adv_estimator=grpo", LOSS + "cw_grpo_live", "+algorithm.cw_grpo.log_prob_mean=group"),
            "option of the estimator",
        ),
        ((LOSS + "cw_grpo_live", "actor_rollout_ref.actor.use_dynamic_bsz=True"), "use_dynamic_bsz=True cuts groups"),
        (
            (LOSS + "cw_grpo_released", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6"),
            r"ppo_micro_batch_size_per_gpu=6 is not a multiple of actor_rollout_ref\.rollout\.n=4",
        ),
        ((LOSS + "cw_grpo_live", "actor_rollout_ref.actor.shuffle=True"), "shuffle=True"),
        ((LOSS + "cw_grpo_live", "algorithm.adv_estimator=opo"), "adv_estimator=opo gives others"),
        (("algorithm.adv_estimator=cw_grpo", LOSS + "geo_mean"), "loss_mode=geo_mean"),
        (("algorithm.adv_estimator=cw_grpo", "actor_rollout_ref.rollout.n=1"), "rollout.n=1 every weight is 1"),
        (
            (
                "algorithm.adv_estimator=cw_grpo",
                "actor_rollout_ref.rollout.name=vllm",
                "++actor_rollout_ref.rollout.full_determinism=True",
            ),
            "all 4 requests of a prompt to vLLM the same seed",
        ),
        # As verl.experimental's configurations are: they say use_v1 and run trainers of V0.
        ((LOSS + "cw_grpo_live", "+rollout.nnodes=1"), r"trainer\.balance_batch=True"),
        (
            (
                "algorithm.adv_estimator=cw_grpo",
                "distillation.enabled=True",
                "distillation.distillation_loss.use_task_rewards=False",
            ),
            "use_task_rewards=False leaves the rewards out",
        ),
        pytest.param(
            (LOSS + "cw_grpo_live", "trainer.use_v1=False"), r"trainer\.balance_batch=True", marks=pytest.mark.losses
        ),
        pytest.param(
            (
                LOSS + "cw_grpo_live",
                "trainer.use_v1=False",
                "trainer.balance_batch=False",
                "algorithm.rollout_correction.bypass_mode=True",
            ),
            "bypass_mode=True",
            marks=pytest.mark.losses,
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_starts(overrides: tuple[str, ...], named: str) -> None:
    config = job(*overrides)
    with pytest.raises(ValueError, match=named):
        check_job(config)
    with pytest.raises(ValueError, match=named):
        validate(config)


def test_what_the_weights_change_elsewhere_is_said() -> None:
    (line,) = notes(job("algorithm.adv_estimator=cw_grpo", LOSS + "clip_cov"))
    assert "loss_mode=clip_cov takes its covariances from the weighted advantages" in line
    assert notes(job("algorithm.adv_estimator=grpo", LOSS + "clip_cov")) == []


def test_a_loss_says_that_it_does_not_know_an_estimator_that_is_not_verls() -> None:
    (line,) = notes(job("algorithm.adv_estimator=mine", LOSS + "cw_grpo_live"))
    assert "adv_estimator=mine is not known: policy loss cw_grpo_live takes its advantages as group-relative" in line
    for known in ("grpo", "rloo_vectorized", "cw_grpo"):
        assert notes(job(f"algorithm.adv_estimator={known}", LOSS + "cw_grpo_live")) == []


def test_a_job_without_cw_grpo_is_left_alone() -> None:
    check_job(job("algorithm.adv_estimator=gae", "actor_rollout_ref.actor.use_dynamic_bsz=True"))


@pytest.mark.parametrize(
    "overrides",
    [
        ("actor_rollout_ref.rollout.name=transformers",),
        ("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=1"),
        ("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.agent.agent_loop_config_path=own.yaml"),
    ],
)
def test_full_determinism_is_allowed_where_responses_may_differ(overrides: tuple[str, ...]) -> None:
    config = job("++actor_rollout_ref.rollout.full_determinism=True", *overrides)
    assert equal_responses(config) is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("algorithm.adv_estimator=cw_grpo",), "estimator cw_grpo applies the weights.*log_prob_mean=response"),
        (
            ("algorithm.adv_estimator=cw_grpo", "+algorithm.cw_grpo.log_prob_mean=group"),
            "estimator cw_grpo.*log_prob_mean=group",
        ),
        (("algorithm.adv_estimator=cw_grpo", "+algorithm.cw_grpo.centre=true"), "estimator cw_grpo.*centred"),
        (("algorithm.adv_estimator=grpo", LOSS + "cw_grpo_live"), "loss cw_grpo_live applies.*gradient stopped"),
        (
            ("algorithm.adv_estimator=cw_grpo", LOSS + "cw_grpo_released"),
            "loss cw_grpo_released applies.*gradient through the weights.*adv_estimator=cw_grpo hands over unweighted",
        ),
    ],
)
def test_one_line_says_where_the_weights_are_applied(overrides: tuple[str, ...], said: str) -> None:
    config = job(*overrides)
    line = describe(job_config(config.algorithm), config.algorithm.adv_estimator)
    assert line is not None
    assert "\n" not in line

    assert re.search(said, line)


def test_nothing_is_said_where_no_weights_are_applied() -> None:
    config = job("algorithm.adv_estimator=grpo")
    assert describe(job_config(config.algorithm), "grpo") is None
