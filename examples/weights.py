# SPDX-License-Identifier: Apache-2.0
"""The weights of four answers to one question: what CW-GRPO multiplies each token's advantage by."""

import torch

from cw_grpo import covariance_weights

advantages = torch.tensor([1.5, -0.5, -0.5, -0.5])  # one answer is right
mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
# Log-probabilities of the sampled tokens. The policy hardly expected the third token of the right answer.
log_probs = torch.tensor(
    [[-0.1, -0.2, -6.0, -0.1], [-0.2, -0.1, -0.4, 0.0], [-0.3, -2.0, -0.1, -0.2], [-0.1, -0.5, 0.0, 0.0]]
)

weights = covariance_weights(log_probs, advantages, mask).weights
print(weights.numpy().round(2))
