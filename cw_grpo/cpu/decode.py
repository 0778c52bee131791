# SPDX-License-Identifier: Apache-2.0
"""Batched sampling from a causal language model of transformers; the random numbers of a request are its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """How to draw a token; the rows of a batch share it. ``temperature=0`` is greedy, ``top_k=-1`` is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_ids: frozenset[int] = frozenset()

    def processors(self) -> LogitsProcessorList:
        """The processors of transformers that turn logits into the logits of the sampled distribution."""
        processors = LogitsProcessorList()
        if self.temperature not in (0, 1):
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature != 0 and self.top_k > 0:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.temperature != 0 and self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        return processors


@dataclass
class Request:
    """One response to sample: the token ids of its prompt, its limit, and the seed of its random numbers."""

    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    seed: int = 0


@dataclass
class Completion:
    """The sampled token ids (a stop token included) and their log-probabilities in the sampled distribution."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = True


def derive_seed(*parts: object) -> int:
    """A 128-bit seed that is the same in every process and differs for different parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "little")


def draw(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws one token per row by inverting the cumulative distribution.

    One uniform number decides a row's token, so that a row's result does not depend on the others in its batch.

    Args:
        log_probs: ``(rows, vocabulary)``, normalised.
        uniforms: ``(rows,)`` float64, in [0, 1).

    Returns:
        ``(rows,)`` int64; never a token of probability 0.
    """
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    # The sum is 1 up to rounding; staying below it keeps the search inside the row.
    targets = uniforms.clamp_max(1 - 1e-12) * cumulative[:, -1]
    return torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]


@torch.inference_mode()
def decode(
    model: PreTrainedModel, requests: Sequence[Request], should_stop: Callable[[], bool] = lambda: False
) -> list[Completion]:
    """Samples one response per request, all in one batch.

    Equal prompts are read once; a finished row leaves the batch. Apart from rounding in the model, a response depends
    on its own request only.

    Args:
        model: a causal language model in evaluation mode.
        requests: they share one ``sampling``; prompts may differ in length.
        should_stop: asked before each token; when true, unfinished responses come back as they are.

    Returns:
        One completion per request, in order; ``finished`` is false for those that ``should_stop`` cut short.

    Raises:
        ValueError: for requests that differ in ``sampling``, an empty prompt, a limit below one token, or a request
            that exceeds the model's positions.
    """
    if len({request.sampling for request in requests}) != 1:
        raise ValueError("the requests of a batch must share one Sampling")
    limit = model.config.max_position_embeddings
    for request in requests:
        if not request.prompt_ids or request.max_tokens < 1:
            raise ValueError("a request needs a prompt and max_tokens >= 1")
        if len(request.prompt_ids) + request.max_tokens > limit:
            raise ValueError(
                f"{len(request.prompt_ids)} prompt tokens and {request.max_tokens} new ones exceed the model's "
                f"{limit} positions (max_position_embeddings)"
            )
    sampling = requests[0].sampling
    processors = sampling.processors()
    stop_ids = torch.tensor(sorted(sampling.stop_ids), dtype=torch.long)
    steps = max(request.max_tokens for request in requests)

    # (rows, steps): what the rows drew so far, and the uniform numbers they will use.
    tokens = torch.zeros(len(requests), steps, dtype=torch.long)
    log_probs = torch.zeros(len(requests), steps)
    lengths = torch.zeros(len(requests), dtype=torch.long)
    max_tokens = torch.tensor([request.max_tokens for request in requests])
    uniforms = torch.zeros(len(requests), steps, dtype=torch.float64)
    if sampling.temperature != 0:
        for row, request in zip(uniforms, requests, strict=True):
            row[: request.max_tokens] = torch.from_numpy(np.random.default_rng(request.seed).random(request.max_tokens))

    # Left padding: the last column of the batch is the last prompt token of every row.
    distinct: dict[tuple[int, ...], int] = {}
    first = torch.tensor([distinct.setdefault(tuple(request.prompt_ids), len(distinct)) for request in requests])
    width = max(map(len, distinct))
    input_ids = torch.zeros(len(distinct), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(distinct):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    position_ids = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)

    active = torch.arange(len(requests))  # the request of each row that is still in the batch
    for step in range(steps):
        if should_stop():
            break
        logits = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if step == 0:  # from one row per distinct prompt to one row per request
            cache.batch_select_indices(first)
            logits, mask, position_ids = logits[first], mask[first], position_ids[first, -1:]
        scores = processors(input_ids, logits.float()).log_softmax(-1)
        drawn = scores.argmax(-1) if sampling.temperature == 0 else draw(scores, uniforms[active, step])
        tokens[active, step] = drawn
        log_probs[active, step] = scores.gather(-1, drawn[:, None])[:, 0]
        lengths[active] += 1

        going = ~torch.isin(drawn, stop_ids) & (step + 1 < max_tokens[active])
        if not going.all():
            kept = going.nonzero()[:, 0]
            if not len(kept):
                active = active[kept]
                break
            cache.batch_select_indices(kept)
            active, drawn, mask, position_ids = active[kept], drawn[kept], mask[kept], position_ids[kept]
        input_ids = drawn[:, None]
        position_ids = position_ids + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)

    unfinished = set(active.tolist())
    return [
        Completion(tokens[i, :length].tolist(), log_probs[i, :length].tolist(), finished=i not in unfinished)
        for i, length in enumerate(lengths.tolist())
    ]
