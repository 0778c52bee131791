# SPDX-License-Identifier: Apache-2.0
"""CW-GRPO through verl's own functions, against plain loops written from the paper (arXiv 2605.11538, section 2.3)."""

import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from recipe.cw_grpo import register
from recipe.cw_grpo.settings import check_job
from recipe.cw_grpo.weights import covariance_weights

from verl.protocol import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_base, utils
from verl.utils.config import validate_config
from verl.workers.config import ActorConfig, OptimizerConfig

CONFIG = str(register.__file__).replace("register.py", "config")
JOB = (
    "actor_rollout_ref.model.path=none",
    "actor_rollout_ref.rollout.name=vllm",
    "trainer.n_gpus_per_node=1",
)


def weights_of_group(log_probs: list[list[float]], advantages: list[float]) -> list[list[float]]:
    """The weights of one group, from the log-probs of each response's valid tokens."""
    mean_advantage = sum(advantages) / len(advantages)
    c = [
        [(log_prob - sum(row) / len(row)) * (advantage - mean_advantage) for log_prob in row]
        for row, advantage in zip(log_probs, advantages, strict=True)
    ]
    flat = [value for row in c for value in row]
    mean = sum(flat) / len(flat)
    sigma = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
    if sigma == 0:
        return [[1.0 for _ in row] for row in c]
    kernel = [[math.exp(-(value**2) / (2 * sigma**2)) for value in row] for row in c]
    total = sum(value for row in kernel for value in row)
    return [[value * len(flat) / total for value in row] for row in kernel]


@pytest.fixture
def batch() -> DataProto:
    """Two groups of four responses, of one to six tokens each."""
    rng = np.random.default_rng(0)
    lengths = torch.tensor([6, 3, 1, 4, 2, 5, 6, 2])
    mask = (torch.arange(6) < lengths[:, None]).long()
    rewards = torch.zeros(8, 6)
    rewards[:, 0] = torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0])
    log_probs = -torch.tensor(rng.gamma(0.5, 1.5, size=(8, 6)), dtype=torch.float32) * mask
    return DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask, "old_log_probs": log_probs},
        non_tensors={"uid": np.array(["a"] * 4 + ["b"] * 4, dtype=object)},
    )


def expected(batch: DataProto) -> torch.Tensor:
    """grpo's advantages times the weights."""
    plain = ray_trainer.compute_advantage(batch.select(), "grpo", config={}).batch["advantages"].clone()
    lengths = batch.batch["response_mask"].sum(-1).tolist()
    for first in (0, 4):
        rows = range(first, first + 4)
        log_probs = [batch.batch["old_log_probs"][row, : lengths[row]].tolist() for row in rows]
        for row, weights in zip(rows, weights_of_group(log_probs, plain[rows, 0].tolist()), strict=True):
            plain[row, : lengths[row]] *= torch.tensor(weights)
    return plain


def test_estimator_in_both_trainers(batch: DataProto):
    wanted = expected(batch)
    v0 = ray_trainer.compute_advantage(batch.select(), adv_estimator="cw_grpo", config={})
    torch.testing.assert_close(v0.batch["advantages"], wanted, rtol=1e-4, atol=1e-5)
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(batch.non_tensor_batch["uid"])]
    for module in (utils, trainer_base):
        v1 = module.compute_advantage_for_multi_trajectories(batch.select(), keys, adv_estimator="cw_grpo", config={})
        torch.testing.assert_close(v1.batch["advantages"], wanted, rtol=1e-4, atol=1e-5)


def test_a_session_with_several_outputs_is_one_response(batch: DataProto):
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0", "b_3_0"]
    grpo = utils.compute_advantage_for_multi_trajectories(batch.select(), keys, "grpo", config={})
    plain = grpo.batch["advantages"].clone()
    ours = utils.compute_advantage_for_multi_trajectories(batch.select(), keys, "cw_grpo", config={})
    weights = covariance_weights(
        *(batch.batch["old_log_probs"], plain, batch.batch["response_mask"], batch.non_tensor_batch["uid"]),
        response_index=[key.rsplit("_", 1)[0] for key in keys],
    ).weights
    torch.testing.assert_close(ours.batch["advantages"], plain * weights, rtol=1e-5, atol=1e-6)


def test_equal_rewards_teach_nothing(batch: DataProto):
    batch.batch["token_level_rewards"][:, 0] = 0.1
    got = ray_trainer.compute_advantage(batch, adv_estimator="cw_grpo", config={}).batch["advantages"]
    assert (got == 0).all()


def test_loss_is_verls_on_weighted_advantages(batch: DataProto):
    log_probs, mask = batch.batch["old_log_probs"], batch.batch["response_mask"]
    plain = ray_trainer.compute_advantage(batch.select(), "grpo", config={}).batch["advantages"].clone()
    optim = OptimizerConfig(lr=1e-6)
    actor = ActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=4, optim=optim)
    losses = [
        core_algos.get_policy_loss_fn(name)(log_probs, log_probs, advantages, mask, config=actor)[0]
        for name, advantages in (("cw_grpo_live", plain), ("vanilla", expected(batch)))
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["cw_grpo", "cw_grpo_live", "cw_grpo_released", "grpo", "clip_cov", "kl_cov"])
def test_configuration_passes_verls_validation(method: str, capsys):
    with initialize_config_dir(CONFIG, version_base=None):
        job = compose("cw_grpo_trainer", [*JOB, f"method={method}"])
    validate_config(job, use_reference_policy=True, use_critic=False)
    assert ("CW-GRPO: the " in capsys.readouterr().out) is method.startswith("cw_grpo")


def test_settings_that_conflict_are_rejected():
    with initialize_config_dir(CONFIG, version_base=None):
        job = compose("cw_grpo_trainer", [*JOB, "method=cw_grpo_live"])
        job.actor_rollout_ref.actor.use_dynamic_bsz = True
        with pytest.raises(ValueError, match="use_dynamic_bsz=True cuts groups"):
            check_job(job)
        record = compose("cw_grpo_trainer", [*JOB, "+algorithm.cw_grpo.record=/record"])
        with pytest.raises(ValueError, match="record is an option of the package"):
            validate_config(record, use_reference_policy=True, use_critic=False)


def test_metrics_are_logged_once(batch: DataProto):
    ray_trainer.compute_advantage(batch, adv_estimator="cw_grpo", config={})
    ones = torch.ones_like(batch.batch["response_mask"])
    batch.batch["prompts"] = batch.batch["responses"] = ones
    batch.batch["attention_mask"] = torch.cat([ones, batch.batch["response_mask"]], 1)
    batch.batch["token_level_scores"] = batch.batch["token_level_rewards"]
    logged = [trainer_base.compute_data_metrics(batch, use_critic=False) for _ in range(2)]
    assert 0 < logged[0]["actor/cw_grpo/effective_token_fraction"] < 1
    assert not [name for name in logged[1] if name.startswith("actor/cw_grpo/")]
