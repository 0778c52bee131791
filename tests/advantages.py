# SPDX-License-Identifier: Apache-2.0
"""Advantages of made-up batches, by verl's own `compute_advantage`."""

from __future__ import annotations

import torch
from batches import Batch
from jobs import make_job
from omegaconf import DictConfig
from verl.protocol import DataProto
from verl.trainer.ppo import ray_trainer


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal to the rounding of a float32 product."""
    return torch.allclose(got, want, rtol=1e-6, atol=1e-7)


def job(loss_mode: str = "vanilla", **cw_grpo) -> DictConfig:
    return make_job(loss_mode=loss_mode, **cw_grpo)


def data_of(batch: Batch, with_log_probs: bool = True) -> DataProto:
    tensors = {"token_level_rewards": batch.token_level_rewards, "response_mask": batch.mask.long()}
    if with_log_probs:
        tensors["old_log_probs"] = batch.log_probs
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": batch.index})


def compute(batch: Batch, estimator: str, config=None, **kwargs) -> DataProto:
    config = (config or job()).algorithm
    return ray_trainer.compute_advantage(data_of(batch), adv_estimator=estimator, config=config, **kwargs)
