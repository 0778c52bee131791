"""The Gaussian-kernel weights of arXiv 2605.11538, section 2.3: tensors in, tensors out. Imports torch alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

LOG_PROB_MEANS = ("response", "group")

# Below this share of (root mean square of the log-probs) * (largest |advantage|) a standard deviation is the rounding
# of equal covariances, not spread.
_RELATIVE_ZERO = {torch.float32: 1e-6, torch.float64: 1e-12}

# On a CPU, responses are worked on in blocks of about so many tokens, which stay in its cache.
_BLOCK_TOKENS = 1 << 17


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
        _refuse(log_probs.detach(), advantages, response_mask != 0, index)
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
    batch = _Batch(log_probs, response_mask)

    def over_group(*values: torch.Tensor) -> torch.Tensor:
        rows = torch.stack(values)
        return rows.new_zeros(len(rows), groups).index_add(1, group, rows)[:, group]

    def largest_in_group(*values: torch.Tensor) -> torch.Tensor:
        rows = torch.stack(values)
        start = rows.new_full((len(rows), groups), -torch.inf)
        return start.scatter_reduce(1, group.expand_as(rows), rows, "amax")[:, group]

    # Of each response: N_i, the mean of log pi, and the sum of squares about it.
    tokens, mean, squares = batch.map(_moments, log_probs)
    present = tokens > 0
    if advantages.dim() == 2:
        a, same = _per_response(advantages, batch)
    else:
        a, same = advantages.double(), present
    a = torch.where(present, a, 0.0)
    n, responses, sum_a = over_group(tokens, present.double(), a)
    n = n.clamp(min=1)
    centred = torch.where(present, a - sum_a / responses.clamp(min=1), 0.0)

    # Over each group: sigma^2, the mean of c^2 less the square of the mean of c (0 about the responses' own means).
    centre = mean
    if log_prob_mean == "group":
        centre = over_group(tokens * mean)[0] / n
    off = mean - centre
    mean_c2, mean_c = over_group(centred.square() * (squares + tokens * off.square()), centred * tokens * off) / n
    variance = mean_c2 - mean_c.square()
    if not (torch.isfinite(variance) & (same | ~present)).all():
        return None
    with torch.no_grad():
        size = torch.where(present, mean.square() + squares / tokens, 0.0).sqrt()
        largest_size, largest_a = largest_in_group(size, a.abs())
        has_spread = variance.clamp(min=0).sqrt() > _RELATIVE_ZERO[batch.dtype] * largest_size * largest_a
    # Both branches of a `where` are differentiated: 1 in place of a variance of 0 keeps the gradient finite.
    scale = torch.where(has_spread, -0.5 * centred.square() / torch.where(has_spread, variance, 1.0), 0.0)

    # w = exp(scale * centred log-prob^2). About the responses' means some c^2 is at most sigma^2. About the group's all
    # may be far larger: the largest w is made 1 for their sum not to vanish.
    top = torch.zeros_like(scale)
    if log_prob_mean == "group":
        with torch.no_grad():
            [least] = batch.map(_least_square, log_probs, centre)
            [top] = largest_in_group(torch.where(present, scale * least, -torch.inf))
            top = torch.where(present, top, 0.0)
    kernel, kernel_sum = batch.map_tokens(_kernel, log_probs, centre, scale, top)
    [group_sum] = over_group(kernel_sum)
    normaliser = torch.where(group_sum > 0, n / torch.where(group_sum > 0, group_sum, 1.0), 1.0)
    sigma = torch.where(has_spread, variance.detach(), 0.0).sqrt()
    return CovarianceWeights(
        kernel, normaliser, kernel_sum, sigma.float(), tokens, a, centred, centre.detach(), log_probs, response_mask
    )


def _moments(block: _Block) -> tuple[torch.Tensor, ...]:
    """Valid tokens, mean log-prob and sum of squares about it, of each response."""
    tokens = block.tokens()
    mean = block.values.sum(-1).double() / tokens.clamp(min=1)
    centred = block.fill(block.values - block.column(mean), 0)
    return tokens, mean, torch.linalg.vector_norm(centred, dim=-1).double().square()


def _least_square(block: _Block, centre: torch.Tensor) -> tuple[torch.Tensor]:
    centred = block.fill(block.values - block.column(centre), torch.inf)
    return (centred.square().amin(-1).double(),)


def _kernel(
    block: _Block, centre: torch.Tensor, scale: torch.Tensor, top: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(scale * (log-prob - centre)^2 - top), 0 where masked, and each response's sum."""
    exponent = (block.values - block.column(centre)).square() * block.column(scale)
    w = block.fill((exponent - block.column(top)).clamp(max=0), -torch.inf).exp()
    return w, w.sum(-1).double()


def _per_response(advantages: torch.Tensor, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The advantage of each response, from (B, T), and whether it is the same at all of its valid tokens."""

    def extremes(block: _Block) -> tuple[torch.Tensor, ...]:
        return block.fill(block.values, -torch.inf).amax(-1), block.fill(block.values, torch.inf).amin(-1)

    high, low = (values.double() for values in batch.map(extremes, advantages))
    return high, ~(high - low > 1e-5 * high.abs())


def _working_dtype(values: torch.Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class _Block:
    """Log-probs (or advantages) of R responses, cut to L tokens; only tokens from ``start`` on can be masked."""

    values: torch.Tensor
    masked: torch.Tensor
    start: int

    def fill(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """(R, L) ``values`` with ``fill`` where masked, in place."""
        values[:, self.start :].masked_fill_(self.masked, fill)
        return values

    def column(self, per_response: torch.Tensor) -> torch.Tensor:
        return per_response.to(self.values.dtype).unsqueeze(-1)

    def tokens(self) -> torch.Tensor:
        """(R,) valid tokens."""
        return self.values.shape[1] - self.masked.float().sum(-1).double()  # bool takes far longer to sum


class _Batch:
    """(B, T) tensors that share a mask, gone through in blocks of responses of about one length, cut to it.

    With a gradient, or on an accelerator, all responses are one block of T tokens.
    """

    def __init__(self, log_probs: torch.Tensor, response_mask: torch.Tensor) -> None:
        self.response_mask, self.dtype = response_mask, _working_dtype(log_probs)
        whole = (torch.is_grad_enabled() and log_probs.requires_grad) or log_probs.device.type != "cpu"
        self.blocks: list[tuple[torch.Tensor, int, int]] = []
        if whole or log_probs.numel() <= _BLOCK_TOKENS:
            self.masked = response_mask == 0
        else:
            self._cut()

    def _cut(self) -> None:
        """Blocks of about _BLOCK_TOKENS: rows, the first token that is masked in any of them, and the length."""
        rows, width = self.response_mask.shape
        counts, firsts = [], []
        for part in self.response_mask.split(max(1, _BLOCK_TOKENS // width)):
            valid = part.bool().numpy()  # numpy is several times faster than torch at both
            counts.append(torch.from_numpy(valid.sum(1)))
            firsts.append(torch.from_numpy(valid.argmin(1)))
        count, first = torch.cat(counts), torch.cat(firsts)
        first[count == width] = width
        end = torch.where(count == first, first, width)
        self.order = end.argsort(descending=True)
        self.back = self.order.argsort()
        ends, begin = end[self.order].tolist(), 0
        while begin < rows:
            length = max(1, ends[begin])
            chosen = self.order[begin : begin + max(1, _BLOCK_TOKENS // length)]
            self.blocks.append((chosen, min(length, int(first[chosen].min())), length))
            begin += len(chosen)

    def map(
        self, function: Callable[..., tuple[torch.Tensor, ...]], values: torch.Tensor, *per_response: torch.Tensor
    ) -> list[torch.Tensor]:
        """``function(block, *per_response)`` of each block of ``values``; its (B,) results."""
        if not self.blocks:
            whole = _Block(values.to(self.dtype).masked_fill(self.masked, 0), self.masked, 0)
            return list(function(whole, *per_response))
        sizes = [len(rows) for rows, _, _ in self.blocks]
        columns = [column[self.order].split(sizes) for column in per_response]
        results = [
            function(self._read(values, *block), *parts) for block, *parts in zip(self.blocks, *columns, strict=True)
        ]
        return [torch.cat(parts)[self.back] for parts in zip(*results, strict=True)]

    def _read(self, values: torch.Tensor, rows: torch.Tensor, start: int, length: int) -> _Block:
        masked = self.response_mask[:, start:length].index_select(0, rows) == 0
        block = _Block(values[:, :length].index_select(0, rows).to(self.dtype), masked, start)
        block.fill(block.values, 0)
        return block

    def map_tokens(
        self, function: Callable[..., tuple[torch.Tensor, ...]], values: torch.Tensor, *per_response: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for a function whose first result is (R, L) and its second (R,): (B, T) float32 and (B,)."""
        if not self.blocks:
            tokens, sums = self.map(function, values, *per_response)
            return tokens.float(), sums
        out = torch.empty(values.shape, dtype=torch.float32)
        places = iter(self.blocks)

        def write(block: _Block, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
            tokens, sums = function(block, *parts)
            rows, _, length = next(places)
            # Every element is written once: clearing a large new tensor first would cost as much as the work itself.
            out[:, :length].index_copy_(0, rows, tokens.float())
            out[:, length:].index_fill_(0, rows, 0)
            return (sums,)

        [sums] = self.map(write, values, *per_response)
        return out, sums


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
        if not isinstance(group, Hashable):
            raise TypeError(f"index must hold hashable group ids; row {row} has {group!r:.200}")
    return ids


def _group_numbers(index: Any, rows: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The groups counted from 0, for each row, and how many there are."""
    if index is None:
        return torch.zeros(rows, dtype=torch.long, device=device), 1
    numbers: dict[Hashable, int] = {}
    of_row = [numbers.setdefault(group, len(numbers)) for group in group_ids(index, rows)]
    return torch.tensor(of_row, dtype=torch.long, device=device), max(1, len(numbers))


def _refuse(log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, index: Any) -> NoReturn:
    """Say what is wrong with values of which no weights can be had."""
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
        _, same = _per_response(advantages, _Batch(advantages, valid))
        varies = (valid.any(-1) & ~same).nonzero()
        if len(varies):
            raise ValueError(
                "advantages must be the same at every valid token of a response; those of row "
                f"{int(varies[0])} vary: they are weighted already, or of an estimator that is not group-relative"
            )
    raise ValueError("the covariance overflows: log-probs or advantages are too large to be meant")
