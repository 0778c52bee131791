# SPDX-License-Identifier: Apache-2.0
"""What a job's configuration says about CW-GRPO, and whether the settings fit each other."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ESTIMATOR = "cw_grpo"
"""The name in `algorithm.adv_estimator`."""
LOSS = "cw_grpo_live"
LOSS_RELEASED = "cw_grpo_released"
LOSSES = (LOSS, LOSS_RELEASED)
"""The names in `actor_rollout_ref.actor.policy_loss.loss_mode`."""

_ACTOR = "actor_rollout_ref.actor"

# verl's estimators whose advantages do not average to 0 over a group, or differ from token to token.
_NOT_GROUP_RELATIVE = (
    "gae",
    "gdpo",
    "grpo_passk",
    "opo",
    "optimal_token_baseline",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "tir_optimal_token_baseline",
)

# Ours, and verl's others.
_GROUP_RELATIVE = (ESTIMATOR, "grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "gpg")


@dataclass(frozen=True)
class Options:
    """The keys under `algorithm.cw_grpo`."""

    log_prob_mean: str = "response"
    """Mean of the log-probs over each `response`'s own valid tokens, or over those of the whole `group`."""
    centre: bool = False
    """Subtract the baseline of :mod:`cw_grpo.baseline` from the weighted advantages: an ablation, not in the paper."""
    record: str | None = None
    """Directory for per-token samples (:mod:`cw_grpo.hooks.samples`), with any loss."""
    record_every: int = 10
    """Steps from one sample to the next."""
    record_tokens: int = 65_536
    """Maximum number of tokens in a sample."""


def read_options(algorithm: DictConfig | Mapping[str, Any] | None) -> Options:
    """The options under `algorithm.cw_grpo`; the defaults where there are none.

    Raises:
        ValueError: an unknown key or value, named, with the allowed ones.
    """
    node = None if algorithm is None else algorithm.get("cw_grpo", None)
    if node is None:
        return Options()
    allowed = [field.name for field in fields(Options)]
    given = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(given, Mapping):
        raise ValueError(f"algorithm.cw_grpo must hold keys ({', '.join(allowed)}), got {given!r}")
    for key in map(str, given):
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {close[0]}? The options" if close else "the options"
            raise ValueError(f"algorithm.cw_grpo.{key} is not an option; {hint} are: {', '.join(allowed)}")
    try:
        options = Options(**OmegaConf.merge(OmegaConf.structured(Options), given))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ValueError(f"algorithm.cw_grpo.{error.full_key}: {str(error).splitlines()[0]}") from error
    if options.log_prob_mean != Options.log_prob_mean:
        from .weights import LOG_PROB_MEANS  # with torch, which takes seconds: a launcher reads settings too

        if options.log_prob_mean not in LOG_PROB_MEANS:
            raise ValueError(
                f"algorithm.cw_grpo.log_prob_mean={options.log_prob_mean!r} is not allowed; "
                f"allowed are: {', '.join(LOG_PROB_MEANS)}"
            )
    if options.centre and options.log_prob_mean != Options.log_prob_mean:
        raise ValueError(
            f"algorithm.cw_grpo.centre=true needs algorithm.cw_grpo.log_prob_mean={Options.log_prob_mean}; remove one"
        )
    for key in ("record_every", "record_tokens"):
        if getattr(options, key) < 1:
            raise ValueError(f"algorithm.cw_grpo.{key}={getattr(options, key)} must be at least 1")
    if options.record is None and given.keys() & {"record_every", "record_tokens"}:
        raise ValueError("algorithm.cw_grpo.record_every and record_tokens need algorithm.cw_grpo.record=DIRECTORY")
    if options.record is not None and not Path(options.record).is_absolute():
        raise ValueError(
            f"algorithm.cw_grpo.record={options.record} must be an absolute path: verl's trainer may run in another "
            "directory, on another node"
        )
    return options


def job_config(algorithm: Any) -> DictConfig | None:
    """The whole job's config, which is the root of the live `algorithm` node that verl hands to estimators.

    None where ``algorithm`` is not part of a job's config (a dataclass, a dict, None: a direct call).
    """
    if not isinstance(algorithm, DictConfig):
        return None
    root: Any = algorithm._get_root()
    return root if OmegaConf.select(root, "actor_rollout_ref.actor") is not None else None


def is_v1(job: DictConfig) -> bool:
    """Whether one of verl's V1 trainers runs the job. A verl without the key `trainer.use_v1` has V0 alone."""
    # verl.experimental's trainers say use_v1 and are of V0; they alone have GPUs for the rollout at the top level.
    return bool(OmegaConf.select(job, "trainer.use_v1", default=False)) and job.get("rollout", None) is None


def bypasses_old_log_probs(job: DictConfig) -> bool:
    """Whether verl takes the rollout's log-probs for the old ones, and makes no pass for them."""
    return bool(OmegaConf.select(job, "algorithm.rollout_correction.bypass_mode"))


def loss_mode(job: DictConfig | None) -> str | None:
    """`actor_rollout_ref.actor.policy_loss.loss_mode` of the job, None where it is not known."""
    return None if job is None else OmegaConf.select(job, f"{_ACTOR}.policy_loss.loss_mode")


def estimator_name(adv_estimator: Any) -> str:
    """The estimator's name; verl passes a string or a member of its `AdvantageEstimator` enum."""
    return str(getattr(adv_estimator, "value", adv_estimator))


def describe(job: DictConfig | None, adv_estimator: Any) -> str | None:
    """One line that says where the weights are applied and with which reading; None where they are not."""
    estimator, loss = estimator_name(adv_estimator), loss_mode(job)
    if loss in LOSSES:
        reading = (
            "gradient through the weights, normalised by the positions of the micro-batch (the authors' code)"
            if loss == LOSS_RELEASED
            else "gradient stopped at the weights"
        )
        return (
            f"CW-GRPO: the policy loss {loss} applies the weights, from the policy being updated; "
            f"log_prob_mean=response; {reading}; adv_estimator={estimator} hands over unweighted advantages"
        )
    if estimator == ESTIMATOR:
        options = read_options(None if job is None else job.algorithm)
        centre = "; centred, which the paper does not do" if options.centre else ""
        return (
            f"CW-GRPO: the advantage estimator {estimator} applies the weights, from old_log_probs; "
            f"log_prob_mean={options.log_prob_mean}{centre}; gradient stopped at the weights; "
            f"loss_mode={loss} is unchanged"
        )
    return None


def describe_record(algorithm: DictConfig) -> str | None:
    """One line that says what is recorded; None where nothing is."""
    options = read_options(algorithm)
    if options.record is None:
        return None
    return (
        f"CW-GRPO: records up to {options.record_tokens} tokens every {options.record_every} steps in {options.record}"
    )


def check_job(job: DictConfig) -> None:
    """Check the settings of a whole job that bear on CW-GRPO; a job that does not use it passes.

    Raises:
        ValueError: a setting with which a run would not do what it says, by its key, with what to set instead.
    """
    options = read_options(job.algorithm)
    loss, estimator = loss_mode(job), estimator_name(job.algorithm.adv_estimator)
    n = job.actor_rollout_ref.rollout.n
    if estimator != ESTIMATOR and loss not in LOSSES:
        given = job.algorithm.get("cw_grpo", None)
        idle = [] if given is None else [key for key in given if not key.startswith("record")]
        if given is not None and (idle or options.record is None):
            raise ValueError(
                f"algorithm.cw_grpo{'.' + idle[0] if idle else ''} is set but has no effect: "
                f"algorithm.adv_estimator={estimator}. Set algorithm.adv_estimator={ESTIMATOR}, or remove it"
            )
        return
    if n < 2:
        raise ValueError(
            f"CW-GRPO needs groups of responses: with actor_rollout_ref.rollout.n={n} every weight is 1. Set it to 2 "
            "or more (paper: 12)"
        )
    if problem := equal_responses(job):
        raise ValueError(problem)
    distillation = OmegaConf.select(job, "distillation")
    if distillation and distillation.enabled and not distillation.distillation_loss.use_task_rewards:
        raise ValueError(
            "distillation.distillation_loss.use_task_rewards=False leaves the rewards out of the loss, so CW-GRPO has "
            "no effect. Set it to True, or remove CW-GRPO"
        )
    if loss == "geo_mean":
        raise ValueError(
            f"algorithm.adv_estimator={ESTIMATOR} has no effect on tokens with {_ACTOR}.policy_loss.loss_mode={loss}, "
            "which averages the advantages of a response first. Use another loss_mode"
        )
    if loss in LOSSES and (problem := _loss_problem(job, str(loss), estimator, options, n)):
        raise ValueError(
            f"{problem}, or set algorithm.adv_estimator={ESTIMATOR} and loss_mode=vanilla, which have no such limit"
        )


def equal_responses(job: DictConfig) -> str | None:
    """Why the responses of a group would all be the same, and what to set; None where they are not.

    verl 0.9.1 gives every request to vLLM the same seed there (`vllm_async_server.py`, `generate`).
    """
    rollout = job.actor_rollout_ref.rollout
    own_loop = OmegaConf.select(rollout, "agent.agent_loop_config_path")  # which may give each its seed
    if not (rollout.get("full_determinism") and rollout.get("name") == "vllm" and rollout.n > 1) or own_loop:
        return None
    return (
        f"actor_rollout_ref.rollout.full_determinism=True makes verl give all {rollout.n} requests of a prompt to vLLM "
        "the same seed: the responses of a group are equal and nothing is learnt. Set it to False, or name an agent "
        "loop that sets sampling_params['seed'] in actor_rollout_ref.rollout.agent.agent_loop_config_path"
    )


def _loss_problem(job: DictConfig, loss: str, estimator: str, options: Options, n: int) -> str | None:
    """Why a policy loss of CW-GRPO cannot have its whole groups in order, and what to set; None where it can."""
    actor = job.actor_rollout_ref.actor
    v1 = is_v1(job)
    micro = actor.ppo_micro_batch_size_per_gpu
    if estimator in _NOT_GROUP_RELATIVE:
        return (
            f"policy loss {loss} needs group-relative advantages; algorithm.adv_estimator={estimator} gives others. "
            "Set it to grpo (or rloo)"
        )
    if options.centre:
        return (
            f"algorithm.cw_grpo.centre=true is an option of the estimator; the policy loss {loss} has no baseline. "
            "Remove it"
        )
    if options.log_prob_mean != Options.log_prob_mean:
        return (
            f"algorithm.cw_grpo.log_prob_mean={options.log_prob_mean} is an option of the estimator; the policy loss "
            f"{loss} takes the mean over each response. Remove the option"
        )
    if actor.use_dynamic_bsz:
        return (
            f"policy loss {loss} needs micro-batches of whole groups; {_ACTOR}.use_dynamic_bsz=True cuts groups. "
            f"Set {_ACTOR}.use_dynamic_bsz=False and {_ACTOR}.ppo_micro_batch_size_per_gpu to a multiple of {n}"
        )
    if micro is not None and (micro < 1 or micro % n):
        return (
            f"policy loss {loss} needs micro-batches of whole groups; {_ACTOR}.ppo_micro_batch_size_per_gpu={micro} "
            f"is not a multiple of {_ACTOR.split('.')[0]}.rollout.n={n}. Set it to {n}"
        )
    if actor.shuffle:
        return f"policy loss {loss} needs groups in order; {_ACTOR}.shuffle=True mixes them. Set it to False"
    if not v1 and job.trainer.balance_batch:
        return f"policy loss {loss} needs groups in order; trainer.balance_batch=True mixes them. Set it to False"
    if not v1 and bypasses_old_log_probs(job):
        return (
            "algorithm.rollout_correction.bypass_mode=True makes verl's V0 trainers replace "
            f"loss_mode={loss} by bypass_mode in the settings. Set bypass_mode=False"
        )
    return None


def notes(job: DictConfig) -> list[str]:
    """Lines about settings that are allowed and change what the weights see."""
    found = []
    rollout, loss = job.actor_rollout_ref.rollout, loss_mode(job)
    cut = [f"{key}={rollout[key]}" for key, off in (("top_p", 1), ("top_k", -1)) if rollout.get(key, off) != off]
    if cut and bypasses_old_log_probs(job):
        found.append(
            f"CW-GRPO: bypass_mode takes the rollout's log-probs, of a distribution that {' and '.join(cut)} cut: the "
            "weights are not those of the policy that is trained"
        )
    estimator = estimator_name(job.algorithm.adv_estimator)
    if loss in LOSSES and estimator not in _GROUP_RELATIVE:
        found.append(
            f"CW-GRPO: algorithm.adv_estimator={estimator} is not known: policy loss {loss} takes its advantages as "
            "group-relative (their mean over a group is 0), and cannot check that they are"
        )
    if estimator == ESTIMATOR and loss in ("clip_cov", "kl_cov"):
        found.append(f"CW-GRPO: loss_mode={loss} takes its covariances from the weighted advantages")
    return found
