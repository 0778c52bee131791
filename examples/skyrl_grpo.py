# SPDX-License-Identifier: Apache-2.0
"""CW-GRPO in SkyRL, on GPUs: the arguments are those of SkyRL's own command."""

from __future__ import annotations

import sys

import numpy as np
import ray
from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.trainer import RayPPOTrainer
from skyrl.train.utils import validate_cfg
from skyrl.train.utils.utils import initialize_ray

from cw_grpo import covariance_weights


class CovarianceTrainer(RayPPOTrainer):
    """GRPO whose advantages are multiplied by the weights of arXiv 2605.11538."""

    def compute_advantages_and_returns(self, data: TrainingInputBatch) -> TrainingInputBatch:
        data = super().compute_advantages_and_returns(data)
        log_probs = data["action_log_probs"]
        if log_probs is None:  # SkyRL leaves them out where the loss takes those of the rollout
            log_probs = data["rollout_logprobs"]
        trajectories = None
        if self.cfg.generator.step_wise_trajectories:  # a row is a step
            last = np.array(data.metadata["is_last_step"], dtype=int)
            trajectories = last.cumsum() - last
        weights = covariance_weights(
            *(log_probs, data["advantages"], data["loss_mask"], data.metadata["uids"]), response_index=trajectories
        ).weights
        data["advantages"] = data["advantages"] * weights
        return data


class Experiment(BasePPOExp):
    def get_trainer(self, *args, **kwargs) -> CovarianceTrainer:
        return CovarianceTrainer(*args, **kwargs)


@ray.remote(num_cpus=1)
def train(cfg: SkyRLTrainConfig) -> None:
    Experiment(cfg).run()


def main() -> None:
    cfg = SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])
    validate_cfg(cfg)
    initialize_ray(cfg)
    ray.get(train.remote(cfg))


if __name__ == "__main__":
    main()
