"""The Gaussian-kernel weights of arXiv 2605.11538, section 2.3: tensors in, tensors out. Imports torch alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

LOG_PROB_MEANS = ("response", "group")

# About so many positions of whole groups are worked on at a time: they stay in a CPU's cache.
_CHUNK = 1 << 20

# Advantages of a response's tokens are the same up to this share.
_SAME = 1e-7

# Below this share of (root mean square of the log-probs) * (largest |advantage|) a standard deviation is the rounding
# of equal covariances, not spread.
_RELATIVE_ZERO = {torch.float32: 1e-6, torch.float64: 1e-12}

# The least sum of squares that a response's log-probs count with there: smaller ones would overflow 1 / sigma^2.
_LEAST_SQUARES = 1e-18


@dataclass(frozen=True)
class CovarianceWeights:
    """What :func:`covariance_weights` returns; B responses of at most T tokens.

    Only ``weights`` and ``weight_sum`` can carry a gradient.
    """

    weights: torch.Tensor
    """(B, T) float32: the normalised weights w~, 0 where masked. Their mean over a group's valid tokens is 1."""
    weight_sum: torch.Tensor
    """(B,) sum(w~) of the response."""
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
    mask: torch.Tensor
    """(B, T) float: 1 at valid tokens, 0 elsewhere."""

    @property
    def covariance(self) -> torch.Tensor:
        """(B, T) float32: c, the centred log-probability times the centred advantage, 0 where masked. Detached."""
        mean, advantage = (of.to(self.mask.dtype).unsqueeze(-1) for of in (self.log_prob_mean, self.centred_advantages))
        return ((self.log_probs.detach() - mean) * advantage).float().masked_fill(self.mask == 0, 0)


def covariance_weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Hashable] | torch.Tensor | Any | None = None,
    *,
    log_prob_mean: str = "response",
    stop_gradient: bool = True,
    out: torch.Tensor | None = None,
) -> CovarianceWeights:
    """Weights that attenuate tokens of extreme covariance, per group of responses to one prompt (section 2.3).

    For valid token t of response i in a group with N valid tokens::

        c_it  = (log pi(o_it) - mean log pi) * (A_i - mean A)
        w_it  = exp(-c_it^2 / (2 sigma^2)),    sigma = population standard deviation of {c_it} over the group
        w~_it = w_it * N / sum(w)

    ``mean A`` is the mean over the group's responses that have a valid token. A group without spread (sigma = 0: equal
    rewards, one response, constant log-probs) gets w~ = 1 exactly. Responses and groups without valid tokens change
    nothing else, so neither does padding. What is (B, T) may be nested, as verl's V1 keeps it: it is padded to the
    longest response, and so is the result.

    Args:
        log_probs: (B, T) log-probabilities of the sampled tokens, any float dtype, any device.
        advantages: (B,) group-relative advantages, or (B, T), the same at every valid token of a response.
        response_mask: (B, T), non-zero at valid tokens; bool, integer or float.
        index: B hashable group ids (numpy array, list, tensor), rows in any order; None means one group.
        log_prob_mean: mean log pi over each ``response``'s own valid tokens (the default, as in the authors' code) or
            over all valid tokens of the ``group`` (as Cui et al., arXiv 2505.22617, write it).
        stop_gradient: True treats the weights as constants, the paper's "reweighted advantage". False lets the
            gradient flow from the weights into ``log_probs``; it stays finite where sigma = 0.
        out: (2, B, T) float32 (float64 for float64 log-probs) to work in, so that a large batch that comes in parts
            needs no new memory for each: the result's ``mask`` and, without a gradient, its ``weights`` lie there.

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
    log_probs, advantages, response_mask = map(_padded, (log_probs, advantages, response_mask))
    check_shapes(log_probs, advantages, response_mask)
    if out is None:
        out = torch.empty((2, *log_probs.shape), dtype=_dtype(log_probs), device=log_probs.device)
    elif out.shape != (2, *log_probs.shape) or out.dtype != _dtype(log_probs):
        raise ValueError(
            f"out must be {_dtype(log_probs)} of shape {(2, *log_probs.shape)}, got {out.dtype} of {tuple(out.shape)}"
        )
    advantages = advantages.detach()
    if not log_probs.numel():  # nothing to take the largest of
        advantages, log_prob_mean = log_probs.new_zeros(len(log_probs)), "response"
    group = group_numbers([0] * len(log_probs) if index is None else index, len(log_probs), log_probs.device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        result = _weights(log_probs, advantages, response_mask, group, log_prob_mean, out)
        if result is None:
            valid = response_mask != 0
            _refuse_at_valid_tokens(log_probs.detach(), advantages, valid, index)
            # What is not finite is padding, which must not enter: 0 in its place.
            advantages = advantages.masked_fill(~(valid if advantages.dim() == 2 else valid.any(-1)), 0)
            log_probs = log_probs.masked_fill(~valid, 0)
            result = _weights(log_probs, advantages, response_mask, group, log_prob_mean, out)
            if result is None:
                raise ValueError("the covariance overflows: log-probs or advantages are too large to be meant")
    return result


def whole_groups(index: Sequence[Hashable] | torch.Tensor | Any, rows: int, width: int) -> Iterator[slice | list[int]]:
    """Rows of as many whole groups as stay in a CPU's cache, a group at least; every row once.

    The weights of a batch are those of its groups, and take less time and memory some groups at a time.

    Args:
        index: hashable group ids of the ``rows``, in any order.
        rows, width: B and T.

    Yields:
        A slice where the rows lie side by side, else their numbers in ascending order.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_ids(index, rows)):
        groups.setdefault(group, []).append(row)
    chunks: list[list[int]] = [[]]
    for members in groups.values():
        if chunks[-1] and (len(chunks[-1]) + len(members)) * width > _CHUNK:
            chunks.append([])
        chunks[-1] += members
    for chunk in map(sorted, chunks):
        side_by_side = chunk and chunk[-1] - chunk[0] + 1 == len(chunk)
        yield slice(chunk[0], chunk[-1] + 1) if side_by_side else chunk


def _padded(values: torch.Tensor) -> torch.Tensor:
    """A nested tensor padded with 0 to its longest row; another as it is."""
    return pad_sequence(list(values.unbind()), batch_first=True) if values.is_nested else values


def _dtype(log_probs: torch.Tensor) -> torch.dtype:
    """What tokens are worked on in."""
    return torch.float64 if log_probs.dtype == torch.float64 else torch.float32


def _weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    group: torch.Tensor,
    log_prob_mean: str,
    out: torch.Tensor,
) -> CovarianceWeights | None:
    """Section 2.3; None where something is not finite, or advantages vary within a response.

    Tokens are masked by multiplication and, where no gradient flows, worked on in place: both several times faster than
    otherwise. Within a response c_it is the centred log-prob times one number, A_i - mean A: sums over a group are sums
    over its responses.
    """
    dtype = _dtype(log_probs)
    mask, work = out
    mask.copy_(response_mask.bool().view(torch.uint8))  # a bool to float takes five times as long

    def over_group(*values: torch.Tensor) -> torch.Tensor:
        rows = torch.stack(values)
        return torch.zeros_like(rows).index_add_(1, group, rows)[:, group]

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).unsqueeze(-1)

    # Of each response: N_i, A_i, the mean of log pi and the sum of squares about it.
    tokens = mask.sum(-1).double()
    present = tokens.clamp(max=1)
    if advantages.dim() == 2:
        each = torch.mul(advantages, mask, out=work)
        high, low = each.amax(-1), each.amin(-1)
        a = torch.where(high > -low, high, low).double()
        deviation = torch.addcmul(each, mask, column(a), value=-1, out=work)
        same = deviation.abs_().amax(-1) <= _SAME * a.abs()
    else:
        a, same = advantages.double() * present, True
    inplace = None if log_probs.requires_grad and torch.is_grad_enabled() else work
    x = torch.mul(log_probs, mask, out=inplace)
    total = x.sum(-1).double()
    mean = total / tokens.clamp(min=1)
    x = torch.addcmul(x, mask, column(mean), value=-1, out=inplace)
    squares = torch.linalg.vector_norm(x, dim=-1).double().square()

    # Of its group: N, mean A and N sigma^2, the sum of squares of c about its mean.
    n, responses, sum_a = over_group(tokens, present, a)
    n = n.clamp(min=1)
    centred = a - sum_a / responses.clamp(min=1)
    centred2 = centred.square()
    about_zero = torch.addcmul(squares, mean, total).clamp(min=_LEAST_SQUARES)
    centre, about_mean = mean, centred2 * squares
    if log_prob_mean == "group":  # about the responses' own means c has the mean 0
        centre = over_group(total)[0] / n
        response_mean = centred * (mean - centre)
        about_mean = about_mean + tokens * (response_mean - over_group(tokens * response_mean)[0] / n).square()
    n_variance, rounding = over_group(about_mean, torch.addcmul(centred2, a, a) * about_zero)
    if not ((n_variance < torch.inf) & same).all():
        return None
    has_spread = n_variance > _RELATIVE_ZERO[dtype] ** 2 * rounding
    scale = centred2 * n / torch.where(has_spread, -2 * math.log(2) * n_variance, -torch.inf)

    # w = exp(-c^2 / (2 sigma^2)) as a power of 2, which takes a third of exp's time on a CPU; and w~.
    if log_prob_mean == "group":
        x = torch.addcmul(x, mask, column(mean - centre), out=inplace)
    exponent = torch.mul(torch.square(x, out=inplace), column(scale), out=inplace)
    if log_prob_mean == "group":
        # About the response's mean some c^2 is at most sigma^2; about the group's all may be far larger: the largest w
        # is made 1 for their sum not to vanish.
        exponent = (exponent - column(_largest(exponent.detach(), mask, group))).clamp(max=0)
    w = torch.mul(torch.exp2(exponent, out=inplace), mask, out=inplace)
    w_sum = w.sum(-1).double()
    # Some w is at least exp(-1/2), so that this is the sum but where a group has no token.
    normaliser = n / over_group(w_sum)[0].clamp(min=0.5)
    return CovarianceWeights(
        weights=torch.mul(w, column(normaliser), out=inplace).float(),
        weight_sum=w_sum * normaliser,
        sigma=(n_variance.detach() / n).where(has_spread, 0.0).sqrt().float(),
        tokens=tokens,
        advantages=a,
        centred_advantages=centred,
        log_prob_mean=centre.detach(),
        log_probs=log_probs,
        mask=mask,
    )


def _largest(exponent: torch.Tensor, mask: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(B,) the largest exponent over the valid tokens of the response's group; 0 where it has none."""
    of_response = exponent.masked_fill(mask == 0, -torch.inf).amax(-1)
    largest = torch.full_like(of_response, -torch.inf).scatter_reduce(0, group, of_response, "amax")[group]
    return torch.where(torch.isfinite(largest), largest, 0.0)


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


def group_ids(index: Any, rows: int) -> list[Hashable]:
    """The B group ids of ``index`` as a list; ``index`` is any sequence of B hashable ids.

    Raises:
        ValueError: ``index`` does not have ``rows`` ids.
        TypeError: an id is not hashable.
    """
    if index is None:
        raise ValueError(f"index must have one group id (verl's uid) for each of the {rows} rows, got None")
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


def group_numbers(index: Any, rows: int, device: torch.device) -> torch.Tensor:
    """(B,) each row's group, counted from 0 as they appear; ``index`` and errors as for :func:`group_ids`."""
    numbers: dict[Hashable, int] = {}
    of_row = [numbers.setdefault(group, len(numbers)) for group in group_ids(index, rows)]
    return torch.tensor(of_row, dtype=torch.long, device=device)


def _refuse_at_valid_tokens(log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, index: Any) -> None:
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
        varies = (high - low > _SAME * torch.maximum(high.abs(), low.abs())).nonzero()
        if len(varies):
            raise ValueError(
                "advantages must be the same at every valid token of a response; those of row "
                f"{int(varies[0])} vary: they are weighted already, or of an estimator that is not group-relative"
            )
