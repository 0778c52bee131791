# SPDX-License-Identifier: Apache-2.0
"""Batches of made-up responses, for tests and for `scripts/gpu_check.py`, where hypothesis is not installed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Batch:
    """``groups`` prompts with ``n`` responses each, of at most ``tokens`` tokens."""

    log_probs: torch.Tensor
    rewards: torch.Tensor
    mask: torch.Tensor
    index: np.ndarray

    @property
    def token_level_rewards(self) -> torch.Tensor:
        scores = torch.zeros_like(self.log_probs)
        scores[:, 0] = self.rewards
        return scores


def make_batch(seed: int, groups: int = 3, n: int = 4, tokens: int = 9, shuffle: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    rows = groups * n
    log_probs = -rng.gamma(0.4, 1.5, size=(rows, tokens))
    lengths = rng.integers(1, tokens + 1, size=rows)
    mask = np.arange(tokens) < lengths[:, None]
    rewards = rng.integers(0, 2, size=rows).astype(float)
    # Each group has both outcomes: without spread all weights are 1, and a test of them would test nothing.
    rewards[::n], rewards[1::n] = 0.0, 1.0
    index = np.repeat([f"uid-{g}" for g in range(groups)], n).astype(object)
    order = rng.permutation(rows) if shuffle else np.arange(rows)
    return Batch(
        torch.tensor(log_probs[order] * mask[order], dtype=torch.float32),
        torch.tensor(rewards[order], dtype=torch.float32),
        torch.tensor(mask[order]),
        index[order],
    )
