"""The Gaussian-kernel weights of arXiv 2605.11538, section 2.3: tensors in, tensors out. Imports torch and numpy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cw_grpo.blocks import Block, Blocks

LOG_PROB_MEANS = ("response", "group")

# Advantages of a response's tokens are the same up to this share.
_SAME = 1e-4

# Below this share of (root mean square of the log-probs) * (largest |advantage|) a standard deviation is the rounding
# of equal covariances, not spread.
_RELATIVE_ZERO = {torch.float32: 1e-6, torch.float64: 1e-12}


@dataclass(frozen=True)
class CovarianceWeights:
    """What :func:`covariance_weights` returns; B responses of at most T tokens.

    The weights are ``kernel`` times a number for each response, so that a caller who multiplies them with another such
    number (an advantage) can do both at once. Only ``weights``, ``kernel`` and ``normaliser`` can carry a gradient.
    """

    kernel: torch.Tensor
    """(B, T) float32: w, 0 where masked."""
    normaliser: torch.Tensor
    """(B,) N / sum(w) of the response's group."""
    kernel_sum: torch.Tensor
    """(B,) sum(w) of the response."""
    sigma: torch.Tensor
    """(B,) float32: the population standard deviation of c over the row's group; 0 where the group has no spread."""
    tokens: torch.Tensor
    """(B,) valid tokens of each response."""
    advantages: torch.Tensor
    """(B,) A_i."""
    centred_advantages: torch.Tensor
    """(B,) A_i - mean A."""
    log_prob_mean: torch.Tensor
    """(B,) mean log pi: what the response's log-probs are centred about."""
    log_probs: torch.Tensor
    """(B, T) as given."""
    response_mask: torch.Tensor
    """(B, T) as given."""
    blocks: Blocks
    """What goes through (B, T) tensors in blocks that fit the mask."""

    @property
    def weights(self) -> torch.Tensor:
        """(B, T) float32: the normalised weights w~, 0 where masked. Their mean over a group's valid tokens is 1."""
        return self.kernel * self.normaliser.float().unsqueeze(-1)

    @property
    def covariance(self) -> torch.Tensor:
        """(B, T) float32: c, the centred log-probability times the centred advantage, 0 where masked. Detached."""
        return self.covariance_of(slice(None))

    def covariance_of(self, tokens: slice) -> torch.Tensor:
        """The same at some of the T tokens only."""
        dtype = _working_dtype(self.log_probs)
        log_probs = self.log_probs.detach()[:, tokens].to(dtype)
        c = (log_probs - self.log_prob_mean.to(dtype).unsqueeze(-1)) * self.centred_advantages.to(dtype).unsqueeze(-1)
        return c.float().masked_fill(self.response_mask[:, tokens] == 0, 0)


def covariance_weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Hashable] | torch.Tensor | Any | None = None,
    *,
    log_prob_mean: str = "response",
    stop_gradient: bool = True,
) -> CovarianceWeights:
    """Weights that attenuate tokens of extreme covariance, per group of responses to one prompt (section 2.3).

    For valid token t of response i in a group with N valid tokens::

        c_it  = (log pi(o_it) - mean log pi) * (A_i - mean A)
        w_it  = exp(-c_it^2 / (2 sigma^2)),    sigma = population standard deviation of {c_it} over the group
        w~_it = w_it * N / sum(w)

    ``mean A`` is the mean over the group's responses that have a valid token. A group without spread (sigma = 0: equal
    rewards, one response, constant log-probs) gets w~ = 1 exactly. Responses and groups without valid tokens change
    nothing else, so neither does padding.

    Args:
        log_probs: (B, T) log-probabilities of the sampled tokens, any float dtype, any device.
        advantages: (B,) group-relative advantages, or (B, T), the same at every valid token of a response.
        response_mask: (B, T), non-zero at valid tokens; bool, integer or float.
        index: B hashable group ids (numpy array, list, tensor), rows in any order; None means one group.
        log_prob_mean: mean log pi over each ``response``'s own valid tokens (the default, as in the authors' code) or
            over all valid tokens of the ``group`` (as Cui et al., arXiv 2505.22617, write it).
        stop_gradient: True treats the weights as constants, the paper's "reweighted advantage". False lets the
            gradient flow from the weights into ``log_probs``; it stays finite where sigma = 0.

    Returns:
        :class:`CovarianceWeights`, on the device of ``log_probs``. Tokens are worked on in float32 (float64 for float64
        log-probs), what belongs to a response or a group in float64.

    Raises:
        ValueError: shapes that do not fit, an unknown ``log_prob_mean``, advantages that vary within a response, or a
            non-finite log-prob or advantage at a valid token; the message names the row.
        TypeError: group ids that are not hashable.
    """
    if log_prob_mean not in LOG_PROB_MEANS:
        raise ValueError(f"log_prob_mean must be one of {', '.join(LOG_PROB_MEANS)}; got {log_prob_mean!r}")
    _check_shapes(log_probs, advantages, response_mask)
    advantages = advantages.detach()
    group, groups = _group_numbers(index, len(log_probs), log_probs.device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        result = _weights(log_probs, advantages, response_mask, group, groups, log_prob_mean)
        if result is None:
            valid = response_mask != 0
            _refuse_at_valid_tokens(log_probs.detach(), advantages, valid, index)
            # What is not finite is padding, which must not enter: 0 in its place.
            advantages = advantages.masked_fill(~(valid if advantages.dim() == 2 else valid.any(-1)), 0)
            result = _weights(log_probs.masked_fill(~valid, 0), advantages, response_mask, group, groups, log_prob_mean)
            if result is None:
                raise ValueError("the covariance overflows: log-probs or advantages are too large to be meant")
    return result


def _weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    group: torch.Tensor,
    groups: int,
    log_prob_mean: str,
) -> CovarianceWeights | None:
    """Section 2.3; None where something is not finite, or advantages vary within a response.

    Within a response c_it is the centred log-prob times one number, A_i - mean A. So the sums over a group are sums of
    its responses' own sums, and the tokens are read twice: for their moments, and for the kernel.
    """
    dtype = _working_dtype(log_probs)
    with_gradient = torch.is_grad_enabled() and log_probs.requires_grad
    blocks = Blocks(response_mask, dtype, cut=log_probs.device.type == "cpu" and not with_gradient)

    def over_group(*values: torch.Tensor) -> torch.Tensor:
        rows = torch.stack(values)
        return rows.new_zeros(len(rows), groups).index_add(1, group, rows)[:, group]

    # Of each response: N_i, the mean of log pi, and the sum of squares about it.
    tokens, mean, squares = blocks.map(lambda block: _moments(block, block.read(log_probs)))
    present = tokens > 0
    if advantages.dim() == 2:
        a, deviation = blocks.map(lambda block: _one_value(block, block.read(advantages)))
    else:
        a, deviation = torch.where(present, advantages.double(), 0.0), None
    n, responses, sum_a = over_group(tokens, present.double(), a)
    n = n.clamp(min=1)
    centred = torch.where(present, a - sum_a / responses.clamp(min=1), 0.0)

    # Over each group: sigma^2, the mean of c^2 less the square of the mean of c.
    centre, about_centre = mean, squares
    if log_prob_mean == "group":
        centre = over_group(tokens * mean)[0] / n
        about_centre = squares + tokens * (mean - centre).square()
    about_zero = squares + tokens * mean.square()
    variance, rounding = over_group(centred.square() * about_centre, (a.square() + centred.square()) * about_zero) / n
    if log_prob_mean == "group":  # about the responses' own means c has the mean 0
        variance = variance - (over_group(centred * tokens * (mean - centre))[0] / n).square()
    sound = variance < torch.inf
    if deviation is not None:
        sound &= deviation <= _SAME * a.abs()
    if not sound.all():
        return None
    has_spread = variance > _RELATIVE_ZERO[dtype] ** 2 * rounding
    # Both branches of a `where` are differentiated: 1 in place of a variance of 0 keeps the gradient finite.
    scale = torch.where(has_spread, centred.square() / torch.where(has_spread, -2 * variance, 1.0), 0.0)

    # w = exp(scale * centred log-prob^2). About the responses' means some c^2 is at most sigma^2. About the group's all
    # may be far larger: the largest w is made 1 for their sum not to vanish.
    columns = [centre, scale]
    if log_prob_mean == "group":
        columns.append(_largest_exponent(log_probs, blocks, centre.detach(), scale.detach(), group, groups))
    kernel, kernel_sum = blocks.map_tokens(lambda block, *of: _kernel(block, block.read(log_probs), *of), *columns)
    [group_sum] = over_group(kernel_sum)
    normaliser = n / torch.where(group_sum > 0, group_sum, n)
    sigma = torch.where(has_spread, variance.detach(), 0.0).sqrt()
    return CovarianceWeights(
        kernel=kernel,
        normaliser=normaliser,
        kernel_sum=kernel_sum,
        sigma=sigma.float(),
        tokens=tokens,
        advantages=a,
        centred_advantages=centred,
        log_prob_mean=centre.detach(),
        log_probs=log_probs,
        response_mask=response_mask,
        blocks=blocks,
    )


def _moments(block: Block, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Valid tokens, mean log-prob and sum of squares about it, of each response."""
    tokens = block.tokens().double()
    mean = log_probs.sum(-1) / tokens.clamp(min=1)
    centred = block.clear(log_probs - mean.to(log_probs.dtype).unsqueeze(-1))
    return tokens, mean, torch.linalg.vector_norm(centred, dim=-1).double().square()


def _one_value(block: Block, advantages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The advantage of each response, from one for each token, and the norm of what deviates from it."""
    high, low = advantages.amax(-1), advantages.amin(-1)
    value = torch.where(high > -low, high, low)
    deviation = block.clear(advantages - value.unsqueeze(-1))
    return value.double(), torch.linalg.vector_norm(deviation, dim=-1).double()


def _kernel(
    block: Block, log_probs: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor, top: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(scale * (log-prob - centre)^2 - top), 0 where masked, and each response's sum."""
    exponent = (log_probs - centre).square() * scale
    if top is not None:
        exponent = (exponent - top).clamp(max=0)
    w = block.clear(exponent.exp())
    return w, w.sum(-1).double()


def _largest_exponent(
    log_probs: torch.Tensor,
    blocks: Blocks,
    centre: torch.Tensor,
    scale: torch.Tensor,
    group: torch.Tensor,
    groups: int,
) -> torch.Tensor:
    """(B,) the largest of scale * (log-prob - centre)^2 <= 0 over the valid tokens of the response's group."""

    def nearest(block: Block, centre: torch.Tensor) -> tuple[torch.Tensor]:
        squares = (block.read(log_probs.detach()) - centre).square()
        squares[:, block.start :].masked_fill_(block.valid == 0, torch.inf)
        return (squares.amin(-1).double(),)

    [least] = blocks.map(nearest, centre)
    least = torch.where(torch.isfinite(least), scale * least, -torch.inf)
    largest = least.new_full((groups,), -torch.inf).scatter_reduce(0, group, least, "amax")[group]
    return torch.where(torch.isfinite(largest), largest, 0.0)


def _working_dtype(values: torch.Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _check_shapes(log_probs: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor) -> None:
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


def group_ids(index: Any, rows: int) -> list[Hashable]:
    """The B group ids of ``index`` as a list; ``index`` is any sequence of B hashable ids.

    Raises:
        ValueError: ``index`` does not have ``rows`` ids.
        TypeError: an id is not hashable.
    """
    ids = index.tolist() if hasattr(index, "tolist") else list(index)
    # Tensors hash by identity: a list of them would be a group a row.
    ids = [group.item() if isinstance(group, torch.Tensor) and group.dim() == 0 else group for group in ids]
    if not isinstance(ids, list) or len(ids) != rows:
        raise ValueError(f"index must have one group id for each of the {rows} rows, got {index!r:.200}")
    for row, group in enumerate(ids):
        try:
            hash(group)
        except TypeError:
            raise TypeError(f"index must hold hashable group ids; row {row} has {group!r:.200}") from None
    return ids


def _group_numbers(index: Any, rows: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The groups counted from 0, for each row, and how many there are."""
    if index is None:
        return torch.zeros(rows, dtype=torch.long, device=device), 1
    numbers: dict[Hashable, int] = {}
    of_row = [numbers.setdefault(group, len(numbers)) for group in group_ids(index, rows)]
    return torch.tensor(of_row, dtype=torch.long, device=device), max(1, len(numbers))


def _refuse_at_valid_tokens(log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, index: Any) -> None:
    """Raise for what is not finite, or for advantages that vary within a response."""
    whole = advantages if advantages.dim() == 2 else advantages.unsqueeze(-1).expand(log_probs.shape)
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
        varies = (high - low > 1e-7 * high.abs()).nonzero()
        if len(varies):
            raise ValueError(
                "advantages must be the same at every valid token of a response; those of row "
                f"{int(varies[0])} vary: they are weighted already, or of an estimator that is not group-relative"
            )
