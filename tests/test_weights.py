# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from batches import Batch, make_batch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches

from cw_grpo import covariance_weights
from cw_grpo.groups import group_numbers, whole_groups
from cw_grpo.metrics import PREFIX, weight_metrics
from cw_grpo.weights import weights_in_workspace


def advantages_of(batch: Batch) -> torch.Tensor:
    return torch.tensor(reference.advantages(batch.rewards.tolist(), batch.index.tolist()), dtype=torch.float32)


def weights_of(batch: Batch, **kwargs) -> torch.Tensor:
    return covariance_weights(batch.log_probs, advantages_of(batch), batch.mask, batch.index, **kwargs).weights


def assert_equals_the_paper(batch: Batch, log_prob_mean: str, tokenwise: bool = False) -> None:
    advantages = advantages_of(batch)
    got = covariance_weights(
        batch.log_probs,
        advantages[:, None] * batch.mask if tokenwise else advantages,
        batch.mask,
        batch.index,
        log_prob_mean=log_prob_mean,
    )
    want = reference.weights(
        batch.log_probs.double().tolist(),
        advantages.double().tolist(),
        batch.mask.tolist(),
        batch.index.tolist(),
        log_prob_mean,
    )
    assert got.weights.dtype == torch.float32
    torch.testing.assert_close(got.weights, torch.tensor(want.weights), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.covariance, torch.tensor(want.covariance), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.sigma, torch.tensor(want.sigma), rtol=1e-5, atol=1e-6)


@given(batches, st.sampled_from(["response", "group"]))
def test_equals_the_paper(batch: Batch, log_prob_mean: str) -> None:
    assert_equals_the_paper(batch, log_prob_mean)


def test_a_case_by_hand() -> None:
    # One group, two responses of two tokens, A = (1, -1); log-probs centred per response: (+1, -1) and (+2, -2).
    log_probs = torch.tensor([[-1.0, -3.0], [-1.0, -5.0]])
    result = covariance_weights(log_probs, torch.tensor([1.0, -1.0]), torch.ones(2, 2))
    assert result.covariance.tolist() == [[1.0, -1.0], [-2.0, 2.0]]
    torch.testing.assert_close(result.sigma, torch.full((2,), 2.5**0.5))  # mean of c is 0, of c^2 (1 + 1 + 4 + 4) / 4
    near, far = np.exp(-1 / 5), np.exp(-4 / 5)
    expected = torch.tensor([[near, near], [far, far]], dtype=torch.float32) * (4 / (2 * near + 2 * far))
    torch.testing.assert_close(result.weights, expected)


@given(batches)
def test_mean_over_a_groups_valid_tokens_is_one(batch: Batch) -> None:
    weights = weights_of(batch)
    for group in set(batch.index):
        own = torch.tensor(batch.index == group)[:, None] & batch.mask
        assert weights[own].double().mean().item() == pytest.approx(1, abs=1e-5)
    assert (weights[~batch.mask] == 0).all()


@given(batches, st.floats(1e-3, 1e3), st.sampled_from([1, -1]))
def test_unchanged_by_scaling_advantages(batch: Batch, scale: float, sign: int) -> None:
    advantages = advantages_of(batch)
    scaled = covariance_weights(batch.log_probs, advantages * scale * sign, batch.mask, batch.index).weights
    torch.testing.assert_close(scaled, weights_of(batch), rtol=1e-4, atol=1e-5)


@given(batches, st.floats(-5, 5), st.floats(0.1, 10))
def test_unchanged_by_shifting_and_scaling_log_probs(batch: Batch, shift: float, scale: float) -> None:
    moved = covariance_weights(
        batch.log_probs.double() * scale + shift, advantages_of(batch), batch.mask, batch.index
    ).weights
    torch.testing.assert_close(moved, weights_of(batch), rtol=1e-5, atol=1e-6)


@given(batches, st.randoms(use_true_random=False))
def test_follows_a_permutation_of_rows(batch: Batch, random) -> None:
    order = list(range(len(batch.index)))
    random.shuffle(order)
    permuted = Batch(batch.log_probs[order], batch.rewards[order], batch.mask[order], batch.index[order])
    torch.testing.assert_close(weights_of(permuted), weights_of(batch)[order], rtol=1e-6, atol=1e-7)


@given(batches, st.integers(1, 5), st.booleans())
def test_unchanged_by_padding_tokens(batch: Batch, width: int, left: bool) -> None:
    garbage = torch.full((len(batch.index), width), float("nan"))
    nothing = torch.zeros(len(batch.index), width, dtype=torch.bool)
    sides = (lambda pad, x: torch.cat([pad, x], 1)) if left else (lambda pad, x: torch.cat([x, pad], 1))
    padded = covariance_weights(
        sides(garbage, batch.log_probs), advantages_of(batch), sides(nothing, batch.mask), batch.index
    ).weights
    own = padded[:, width:] if left else padded[:, :-width]
    torch.testing.assert_close(own, weights_of(batch), rtol=1e-6, atol=1e-7)
    assert (padded[sides(nothing, ~nothing[:, :1].expand_as(batch.mask)) == 0] == 0).all()


@given(batches, st.floats(-3, 3))
def test_unchanged_by_an_empty_response_and_by_padding_rows(batch: Batch, advantage: float) -> None:
    rows, tokens = batch.log_probs.shape
    extra = covariance_weights(
        torch.cat([batch.log_probs, torch.full((2, tokens), -7.0)]),
        torch.cat([advantages_of(batch), torch.tensor([advantage, advantage])]),
        torch.cat([batch.mask, torch.zeros(2, tokens, dtype=torch.bool)]),
        np.append(batch.index, np.array([batch.index[0], "pad0"], dtype=object)),
    )
    torch.testing.assert_close(extra.weights[:rows], weights_of(batch), rtol=1e-6, atol=1e-7)
    assert (extra.weights[rows:] == 0).all()
    assert extra.sigma[-1] == 0


def test_an_empty_response_does_not_enter_the_mean_advantage() -> None:
    log_probs = torch.tensor([[-1.0, -3.0], [-1.0, -5.0], [0.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 0]])
    with_empty = covariance_weights(log_probs, torch.tensor([3.0, -1.0, 40.0]), mask)
    without = covariance_weights(log_probs[:2], torch.tensor([3.0, -1.0]), mask[:2])
    assert without.covariance.tolist() == [[2.0, -2.0], [-4.0, 4.0]]  # A - mean A is 2, -2
    assert torch.equal(with_empty.weights[:2], without.weights)


@given(batches, st.sampled_from(["response", "group"]), st.booleans(), st.booleans())
def test_the_same_in_a_workspace(batch: Batch, log_prob_mean: str, tokenwise: bool, gradient: bool) -> None:
    options = {"log_prob_mean": log_prob_mean, "stop_gradient": not gradient}
    log_probs = batch.log_probs.clone().requires_grad_()
    advantages = advantages_of(batch)[:, None] * batch.mask if tokenwise else advantages_of(batch)
    workspace = torch.full((2, *log_probs.shape), torch.nan)
    group = group_numbers(batch.index, len(log_probs), log_probs.device)
    given = weights_in_workspace(workspace, log_probs, advantages, batch.mask, group, None, **options)
    own = covariance_weights(log_probs, advantages, batch.mask, batch.index, **options)
    assert torch.equal(given.weights, own.weights) and torch.equal(given.mask, own.mask)
    assert given.weights.requires_grad == gradient
    assert given.mask.data_ptr() == workspace[0].data_ptr()
    assert gradient or given.weights.data_ptr() == workspace[1].data_ptr()


def cut(batch: Batch, random) -> tuple[Batch, list[int], list[tuple[int, int]]]:
    """The batch with its responses cut into rows, their response ids, and where each (row, token) was before."""
    rows, ids, origin = [], [], []
    for i, mask in enumerate(batch.mask.tolist()):
        ends = sorted({0, len(mask), *(random.randrange(len(mask) + 1) for _ in range(random.randrange(4)))})
        for start, end in itertools.pairwise(ends):
            rows.append((i, start, end))
            ids.append(i)
    random.shuffle(order := list(range(len(rows))))
    rows, ids = [rows[k] for k in order], [ids[k] for k in order]
    width = batch.mask.shape[1]
    log_probs, mask = torch.full((len(rows), width), torch.nan), torch.zeros(len(rows), width, dtype=torch.bool)
    for k, (i, start, end) in enumerate(rows):
        log_probs[k, : end - start], mask[k, : end - start] = batch.log_probs[i, start:end], batch.mask[i, start:end]
        origin += [(i, t) for t in range(start, end) if batch.mask[i, t]]
    return Batch(log_probs, batch.rewards[ids], mask, batch.index[ids]), ids, origin


@given(batches, st.sampled_from(["response", "group"]), st.booleans(), st.randoms(use_true_random=False))
def test_unchanged_by_cutting_responses_into_rows(batch: Batch, log_prob_mean: str, tokenwise: bool, random) -> None:
    parts, ids, origin = cut(batch, random)
    advantages = advantages_of(batch)
    whole = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index, log_prob_mean=log_prob_mean)
    given = advantages[ids][:, None] * parts.mask if tokenwise else advantages[ids]
    got = covariance_weights(
        parts.log_probs, given, parts.mask, parts.index, response_index=ids, log_prob_mean=log_prob_mean
    )
    row, token = torch.tensor(origin).T
    for name in ("weights", "covariance"):
        want = getattr(whole, name)[row, token]
        torch.testing.assert_close(getattr(got, name)[parts.mask], want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.response_share.sum(), whole.response_share.sum())
    metrics = [weight_metrics(result) for result in (got, whole)]
    for name in ("sigma", "zero_sigma_fraction", "kept_positive", "kept_negative"):
        assert metrics[0][PREFIX + name] == pytest.approx(metrics[1][PREFIX + name], rel=1e-5, abs=1e-6)


def test_parts_of_a_response_must_agree() -> None:
    log_probs, mask, ids = torch.zeros(3, 2), torch.ones(3, 2), ["a", "b", "a"]
    for advantages in (torch.tensor([1.0, -1.0, 0.5]), torch.tensor([1.0, -1.0, 0.5])[:, None] * mask):
        with pytest.raises(ValueError, match=r"same in all rows of a response .*row 0 differ"):
            covariance_weights(log_probs, advantages, mask, response_index=ids)
    with pytest.raises(ValueError, match="some response has rows of two groups"):
        covariance_weights(log_probs, torch.zeros(3), mask, ["g", "g", "h"], response_index=ids)
    with pytest.raises(ValueError, match="response_index must have one id for each of the 3 rows"):
        covariance_weights(log_probs, torch.zeros(3), mask, response_index=["a"])


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("gradient", [False, True])
def test_nested_tensors_give_the_same_as_padded_ones(mask_dtype, gradient: bool) -> None:
    batch = make_batch(18)
    lengths = batch.mask.sum(-1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])

    def nested(values: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor_from_jagged(values[batch.mask], offsets)

    log_probs, mask = batch.log_probs.clone().requires_grad_(gradient), batch.mask.to(mask_dtype)
    advantages = advantages_of(batch)[:, None] * batch.mask
    want = covariance_weights(log_probs, advantages, mask, batch.index, stop_gradient=not gradient)
    given = nested(log_probs), nested(advantages), nested(mask)
    got = covariance_weights(*given, batch.index, stop_gradient=not gradient)
    assert torch.equal(got.weights, want.weights[:, : lengths.max()])
    assert torch.equal(covariance_weights(given[0], advantages[:, 0], given[2], batch.index).weights, got.weights)
    if gradient:
        (got.weights.square().sum() - want.weights.square().sum()).backward()
        assert log_probs.grad.abs().max() < 1e-6
    with pytest.raises(ValueError, match="must have the shape of log_probs"):
        covariance_weights(given[0], advantages[:, 0], torch.ones(len(lengths), 99), batch.index)


def test_nested_tensors_of_other_kinds() -> None:
    batch = make_batch(18)
    lengths = batch.mask.sum(-1)
    want = weights_of(batch)[:, : lengths.max()]
    advantages = advantages_of(batch)
    mask = torch.nested.as_nested_tensor([row[row] for row in batch.mask], layout=torch.jagged)
    strided = torch.nested.as_nested_tensor(
        [row[:length] for row, length in zip(batch.log_probs, lengths, strict=True)], layout=torch.strided
    )
    holes = torch.nested.narrow(batch.log_probs, 1, torch.zeros_like(lengths), lengths, layout=torch.jagged)
    for log_probs in (strided, holes):
        assert torch.equal(covariance_weights(log_probs, advantages, mask, batch.index).weights, want)
    empty = torch.nested.as_nested_tensor([torch.zeros(0)] * 2, layout=torch.strided)
    assert covariance_weights(empty, torch.zeros(2), empty).weights.shape == (2, 0)
    deep = torch.nested.as_nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=torch.strided)
    with pytest.raises(ValueError, match=r"log_probs must be \(B, T\), got shape \(2, 2, 3\)"):
        covariance_weights(deep, torch.zeros(2), deep)


@pytest.mark.parametrize("tokens", [9, 40_000])
def test_padding_does_not_decide_whether_advantages_vary(tokens: int) -> None:
    log_probs, mask = -torch.rand(2, tokens), torch.ones(2, tokens)
    mask[:, -1] = 0
    for off in (5e-8, -5e-8, 1e-6, -1e-6, 5e-5, -5e-5):
        advantages = torch.tensor([1.9, -1.0])[:, None].repeat(1, tokens)
        advantages[0, 3] *= 1 + off
        for padding in (0.0, torch.nan):
            log_probs[1, -1] = padding
            if abs(off) < 1e-7:
                covariance_weights(log_probs, advantages, mask)
            else:
                with pytest.raises(ValueError, match="those of row 0 vary"):
                    covariance_weights(log_probs, advantages, mask)


@pytest.mark.parametrize("tokens", [2, 20_000])
def test_advantages_that_vary_within_a_response_are_refused(tokens: int) -> None:
    advantages = torch.ones(9, tokens)
    advantages[4, 1] = 0.9
    advantages[7, 1:] = -1.0
    mask = torch.ones(9, tokens)
    mask[4, 1] = 0
    with pytest.raises(ValueError, match="same at every valid token of a response; those of row 7 vary"):
        covariance_weights(torch.zeros(9, tokens), advantages, mask)
    advantages[7] = -1.0
    covariance_weights(torch.zeros(9, tokens), advantages, mask)


@pytest.mark.parametrize("deviation", [1e-3, 0.07, 1.0])
def test_one_deviating_advantage_of_many_is_refused(deviation: float) -> None:
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 20_000).clone()
    advantages[1, -1] += deviation
    with pytest.raises(ValueError, match="those of row 1 vary"):
        covariance_weights(torch.zeros(2, 20_000), advantages, torch.ones(2, 20_000))


@pytest.mark.parametrize("exponent", range(0, 46, 3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_prob_mean", ["response", "group"])
def test_log_probs_of_any_smallness_give_finite_weights(exponent: int, dtype: torch.dtype, log_prob_mean: str) -> None:
    log_probs = -torch.tensor([[0.0, 1, 2, 3], [1, 0, 5, 2]], dtype=dtype)
    whole, small = (
        covariance_weights(x, torch.tensor([1.0, -1]), torch.ones(2, 4), log_prob_mean=log_prob_mean).weights
        for x in (log_probs, log_probs * 10.0**-exponent)
    )
    if exponent <= 12:
        torch.testing.assert_close(small, whole)
    else:
        assert torch.isfinite(small).all() and small.mean().item() == pytest.approx(1)


def test_equal_covariances_about_the_groups_mean_are_no_spread() -> None:
    # c is 0.3 * 0.7 at every token.
    log_probs = torch.tensor([[-0.1], [-0.7]], dtype=torch.float64).repeat(1, 3)
    advantages = torch.tensor([0.7, -0.7], dtype=torch.float64)
    result = covariance_weights(log_probs, advantages, torch.ones(2, 3), log_prob_mean="group")
    assert (result.weights == 1).all() and (result.sigma == 0).all()


@given(st.floats(1e-3, 1e3), st.sampled_from([1, 1_000, 8_191, 100_000]), st.floats(0, 1))
def test_equal_advantages_of_long_responses_are_taken_as_equal(value: float, tokens: int, share: float) -> None:
    mask = torch.ones(2, tokens)
    mask[:, int(share * tokens) :] = 0
    advantages = torch.tensor([value, -value]).unsqueeze(-1) * mask
    result = covariance_weights(torch.zeros(2, tokens), advantages, mask)
    assert torch.equal(result.advantages.float(), advantages[:, 0])


@pytest.mark.parametrize("log_prob_mean", ["response", "group"])
def test_holes_and_empty_responses_equal_the_paper(log_prob_mean: str) -> None:
    batch = make_batch(23, groups=9, n=5, tokens=40, shuffle=True)
    batch.mask[:, 7:11], batch.mask[3] = False, False  # tokens of a tool, in the middle of a response
    assert_equals_the_paper(batch, log_prob_mean, tokenwise=True)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 18])
def test_some_whole_groups_at_a_time_give_the_same(monkeypatch, chunk: int, shuffle: bool) -> None:
    monkeypatch.setattr("cw_grpo.groups._CHUNK_POSITIONS", chunk)
    batch = make_batch(24, groups=7, n=5, tokens=40, shuffle=shuffle)
    advantages, got = advantages_of(batch), torch.full_like(batch.log_probs, torch.nan)
    chunks = list(whole_groups(batch.index, *batch.mask.shape))
    assert len(chunks) == {1: 7, 500: 4, 1 << 18: 1}[chunk]
    assert shuffle or all(isinstance(rows, slice) for rows in chunks)
    for rows in chunks:
        assert torch.isnan(got[rows]).all()
        got[rows] = covariance_weights(
            batch.log_probs[rows], advantages[rows], batch.mask[rows], batch.index[rows]
        ).weights
    torch.testing.assert_close(got, weights_of(batch), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-10, 1e10, 1e15])
def test_advantages_of_any_size(scale: float) -> None:
    batch = make_batch(21)
    scaled = covariance_weights(batch.log_probs, advantages_of(batch) * scale, batch.mask, batch.index).weights
    torch.testing.assert_close(scaled, weights_of(batch), rtol=1e-5, atol=1e-6)


def test_long_responses_of_a_policy_that_is_almost_certain() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = -1e-6 * torch.rand(12, 8192, generator=generator)
    log_probs[torch.rand(12, 8192, generator=generator) < 1e-3] = -15.0
    advantages = torch.tensor([1.0] * 3 + [-1 / 3] * 9)
    for rare in (log_probs, torch.where(log_probs < -1, 0.0, log_probs)):
        got = covariance_weights(rare, advantages, torch.ones_like(rare))
        want = covariance_weights(rare.double(), advantages, torch.ones_like(rare))
        torch.testing.assert_close(got.weights, want.weights, rtol=1e-4, atol=1e-5)
        assert (got.weights < 0.9).any()


@given(batches)
def test_a_batch_is_its_groups(batch: Batch) -> None:
    whole = weights_of(batch)
    for group in set(batch.index):
        rows = torch.tensor(np.flatnonzero(batch.index == group))
        alone = Batch(batch.log_probs[rows], batch.rewards[rows], batch.mask[rows], batch.index[rows])
        torch.testing.assert_close(weights_of(alone), whole[rows], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("case", "log_prob_mean"),
    [
        *itertools.product(["equal rewards", "one response", "constant log-probs", "zeros"], ["response", "group"]),
        ("one token each", "response"),
    ],
)
def test_no_spread_means_weight_one(case: str, log_prob_mean: str) -> None:
    batch = make_batch(3, groups=1, n=4, tokens=13)
    log_probs, advantages, mask = batch.log_probs.clone(), advantages_of(batch), batch.mask.clone()
    if case == "equal rewards":
        advantages = torch.full_like(advantages, 0.1)
    elif case == "one response":
        log_probs, advantages, mask = log_probs[:1], advantages[:1], mask[:1]
    elif case == "constant log-probs":
        log_probs = torch.full_like(log_probs, -0.1)
    elif case == "one token each":
        mask[:, 1:] = False
    else:
        log_probs = torch.zeros_like(log_probs)
    result = covariance_weights(log_probs, advantages, mask, log_prob_mean=log_prob_mean)
    assert torch.equal(result.weights, mask.float())
    assert (result.sigma == 0).all()


def test_equal_covariances_that_are_not_zero_mean_weight_one() -> None:
    # Two one-token responses about the group's mean: c is the same for both, sigma is rounding.
    log_probs = torch.tensor([[-0.1], [-2.3]])
    result = covariance_weights(log_probs, torch.tensor([0.7, -0.7]), torch.ones(2, 1), log_prob_mean="group")
    assert result.weights.tolist() == [[1.0], [1.0]]


def test_one_token_far_from_all_others_leaves_the_rest_alone() -> None:
    log_probs = torch.zeros(2, 10_000)
    log_probs[0, 0] = -1000.0
    weights = covariance_weights(log_probs, torch.tensor([1.0, -1.0]), torch.ones(2, 10_000)).weights
    assert weights[0, 0] == 0
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_log_probs_are_taken_as_they_are(dtype: torch.dtype) -> None:
    batch = make_batch(5)
    low = batch.log_probs.to(dtype)
    got = covariance_weights(low, advantages_of(batch), batch.mask, batch.index).weights
    want = covariance_weights(low.double(), advantages_of(batch), batch.mask, batch.index).weights
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_kinds_of_index_mask_and_advantages(mask_dtype: torch.dtype) -> None:
    batch = make_batch(7, shuffle=True)
    want, advantages = weights_of(batch), advantages_of(batch)
    numbers = [sorted(set(batch.index)).index(group) for group in batch.index]
    tensor = torch.tensor(numbers)
    for index in (batch.index, batch.index.tolist(), tuple(batch.index), numbers, tensor, list(tensor)):
        mask = batch.mask.to(mask_dtype)
        assert torch.equal(covariance_weights(batch.log_probs, advantages, mask, index).weights, want)
        tokenwise = advantages[:, None] * batch.mask
        torch.testing.assert_close(covariance_weights(batch.log_probs, tokenwise, mask, index).weights, want)


def test_no_index_is_one_group() -> None:
    batch = make_batch(9)
    one = covariance_weights(batch.log_probs, advantages_of(batch), batch.mask, ["g"] * len(batch.index)).weights
    assert torch.equal(covariance_weights(batch.log_probs, advantages_of(batch), batch.mask).weights, one)


@pytest.mark.parametrize("log_prob_mean", ["response", "group"])
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_empty_batch(shape: tuple[int, int], log_prob_mean: str) -> None:
    for advantages in (torch.zeros(shape[0]), torch.zeros(shape)):
        result = covariance_weights(torch.zeros(shape), advantages, torch.zeros(shape), log_prob_mean=log_prob_mean)
        assert result.weights.shape == shape
        assert result.sigma.tolist() == [0.0] * shape[0]


def test_gradient_is_stopped_by_default() -> None:
    batch = make_batch(11)
    log_probs = batch.log_probs.requires_grad_()
    result = covariance_weights(log_probs, advantages_of(batch), batch.mask, batch.index)
    assert not result.weights.requires_grad


@pytest.mark.parametrize("log_prob_mean", ["response", "group"])
def test_gradient_through_the_weights_is_the_numerical_one(log_prob_mean: str) -> None:
    batch = make_batch(13, groups=2, n=3, tokens=5)
    advantages, direction = advantages_of(batch), make_batch(14, 2, 3, 5).log_probs.double()

    def objective(values: list[list[float]]) -> float:
        w = reference.weights(
            values, advantages.double().tolist(), batch.mask.tolist(), batch.index.tolist(), log_prob_mean
        )
        return float((torch.tensor(w.weights, dtype=torch.float64) * direction).sum())

    log_probs = batch.log_probs.double().requires_grad_()
    result = covariance_weights(
        log_probs, advantages, batch.mask, batch.index, log_prob_mean=log_prob_mean, stop_gradient=False
    )
    (result.weights * direction).sum().backward()
    assert not result.covariance.requires_grad
    assert not result.sigma.requires_grad
    for row, token in batch.mask.nonzero().tolist():
        values = log_probs.detach().clone()
        values[row, token] += 1e-5
        up = objective(values.tolist())
        values[row, token] -= 2e-5
        slope = (up - objective(values.tolist())) / 2e-5
        assert log_probs.grad[row, token].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)
    assert (log_probs.grad[~batch.mask] == 0).all()


def test_gradient_is_finite_where_a_group_has_no_spread() -> None:
    batch = make_batch(15, groups=2, n=4)
    advantages = advantages_of(batch)
    advantages[:4] = 0
    log_probs = batch.log_probs.requires_grad_()
    covariance_weights(log_probs, advantages, batch.mask, batch.index, stop_gradient=False).weights.pow(
        2
    ).sum().backward()
    assert torch.isfinite(log_probs.grad).all()
    assert (log_probs.grad[:4] == 0).all()
    assert (log_probs.grad[4:] != 0).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("equal_rewards", [False, True])
def test_a_non_finite_log_prob_at_a_valid_token_names_the_row(value: float, equal_rewards: bool) -> None:
    batch = make_batch(17)
    advantages = torch.zeros(len(batch.index)) if equal_rewards else advantages_of(batch)
    batch.log_probs[6, 0] = value
    with pytest.raises(ValueError, match=r"log-prob .* token 0 of row 6 \(group 'uid-1'\)"):
        covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)


def test_a_non_finite_advantage_names_the_row_and_an_empty_responses_does_not_matter() -> None:
    batch = make_batch(19)
    advantages = advantages_of(batch)
    advantages[2] = float("nan")
    with pytest.raises(ValueError, match="advantage nan .* row 2"):
        covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)
    batch.mask[2] = False
    assert torch.isfinite(covariance_weights(batch.log_probs, advantages, batch.mask, batch.index).weights).all()


def test_bad_arguments_are_refused() -> None:
    lp, a, m = torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3)
    with pytest.raises(ValueError, match="response, group"):
        covariance_weights(lp, a, m, log_prob_mean="batch")
    with pytest.raises(ValueError, match="each of the 4 rows"):
        covariance_weights(lp, a, m, ["a", "b"])
    with pytest.raises(TypeError, match="row 1"):
        covariance_weights(lp, a, m, ["a", ["b"], "c", "d"])
    with pytest.raises(ValueError, match="response_mask"):
        covariance_weights(lp, a, m[:, :2])
    with pytest.raises(ValueError, match="advantages"):
        covariance_weights(lp, torch.zeros(3), m)
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        covariance_weights(lp[0], a, m[0])
    with pytest.raises(ValueError, match="float dtype"):
        covariance_weights(lp.long(), a, m)


def test_importing_the_package_does_not_import_verl() -> None:
    code = (
        "import sys, cw_grpo, cw_grpo.metrics; sys.exit(any(m.split('.')[0] in ('verl', 'ray') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
