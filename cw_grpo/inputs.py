# SPDX-License-Identifier: Apache-2.0
"""What the weights demand of their inputs, and the errors that name a row. Imports torch alone."""

from __future__ import annotations

from typing import Any

import torch

from .groups import group_ids

ADVANTAGE_RTOL = 1e-7
"""Relative tolerance for equal advantages at the tokens of a response."""


def check_shapes(log_probs: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor) -> None:
    """Raise a ValueError if these are not what :func:`covariance_weights` takes, once padded."""
    if log_probs.dim() != 2:
        raise ValueError(f"log_probs must be (B, T), got shape {tuple(log_probs.shape)}")
    if not log_probs.is_floating_point():
        raise ValueError(f"log_probs must be of a float dtype, got {log_probs.dtype}")
    if response_mask.shape != log_probs.shape:
        raise ValueError(
            f"response_mask must have the shape of log_probs {tuple(log_probs.shape)}, got {tuple(response_mask.shape)}"
        )
    if advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError(
            f"advantages must be (B,) or (B, T) for log_probs of shape {tuple(log_probs.shape)}, "
            f"got {tuple(advantages.shape)}"
        )


def equal_within(advantage: torch.Tensor, present: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """(B,) whether the advantage is the same in all rows of the row's response that have a valid token."""
    high, low = (
        torch.full_like(advantage, -torch.inf).scatter_reduce(0, response, of.where(present, -torch.inf), "amax")
        for of in (advantage, -advantage)
    )
    high, low = high[response], -low[response]
    return ~present | (high - low <= ADVANTAGE_RTOL * advantage.abs())


def raise_for_invalid_inputs(
    log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, index: Any
) -> None:
    """Raise for what is not finite, or for advantages that vary within a response."""
    whole = advantages.double()
    whole = whole if whole.dim() == 2 else whole.unsqueeze(-1).expand(log_probs.shape)
    for name, values in (("log-prob", log_probs), ("advantage", whole)):
        bad = (~torch.isfinite(values) & valid).nonzero()
        if len(bad):
            row, token = bad[0].tolist()
            group = "" if index is None else f" (group {group_ids(index, len(values))[row]!r})"
            raise ValueError(
                f"{name} {values[row, token].item()} at valid token {token} of row {row}{group}, one of {len(bad)}. "
                "The weights need finite values: look for an overflow in the model's logits, or for a sampled token "
                "that the policy gives no probability (top_p, top_k or temperature applied on one side only)."
            )
    if advantages.dim() == 2:
        high = whole.masked_fill(~valid, -torch.inf).amax(-1)
        low = whole.masked_fill(~valid, torch.inf).amin(-1)
        varies = (high - low > ADVANTAGE_RTOL * torch.maximum(high.abs(), low.abs())).nonzero()
        if len(varies):
            raise ValueError(
                "advantages must be the same at every valid token of a response; those of row "
                f"{int(varies[0])} vary: they are weighted already, or of an estimator that is not group-relative"
            )


def raise_for_unequal_parts(advantages: torch.Tensor, valid: torch.Tensor, response: torch.Tensor) -> None:
    """Raise for advantages that differ between the rows of a response."""
    of_row = advantages if advantages.dim() == 1 else advantages.where(valid, -torch.inf).amax(-1)
    unequal = (~equal_within(of_row.double(), valid.any(-1), response)).nonzero()
    if len(unequal):
        raise ValueError(
            f"advantages must be the same in all rows of a response (response_index); those of row {int(unequal[0])} "
            "differ from another row's"
        )
