# SPDX-License-Identifier: Apache-2.0
"""Sampling: each request for itself, whatever shares its batch; log-probabilities as the model gives them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from cw_grpo.cpu.decode import Completion, Request, Sampling, decode, derive_seed, draw

EOS = 1
PROMPTS = [[2, 12, 3, 16], [5, 6, 7, 8, 9, 12, 10, 16], [4, 16]]
SAMPLING = Sampling(temperature=0.7, stop_ids=frozenset({EOS}))


def requests(n: int = 4, max_tokens: int = 20, sampling: Sampling = SAMPLING) -> list[Request]:
    return [Request(p, max_tokens, sampling, derive_seed(p, i)) for p in PROMPTS for i in range(n)]


def plain_log_probs(model: LlamaForCausalLM, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    """One row, no cache, no padding, no batch."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


def assert_same(a: list[Completion], b: list[Completion]) -> None:
    assert [c.token_ids for c in a] == [c.token_ids for c in b]
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(torch.tensor(x.log_probs), torch.tensor(y.log_probs))


def test_a_response_does_not_depend_on_its_batch(model):
    together = decode(model, requests())
    assert len({tuple(c.token_ids) for c in together}) > len(PROMPTS)  # the samples of a prompt differ
    assert len({len(c.token_ids) for c in together}) > 2  # rows left the batch at different times
    assert_same(together, [decode(model, [request])[0] for request in requests()])
    order = list(range(len(together)))
    random.Random(0).shuffle(order)
    assert_same([together[i] for i in order], decode(model, [requests()[i] for i in order]))


def test_a_longer_limit_only_adds_tokens(model):
    short, long = decode(model, requests(max_tokens=5)), decode(model, requests(max_tokens=30))
    assert [c.token_ids[:5] for c in long] == [c.token_ids for c in short]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_plain_forward_pass(model, temperature):
    reqs = requests(sampling=replace(SAMPLING, temperature=temperature))
    for request, completion in zip(reqs, decode(model, reqs), strict=True):
        expected = plain_log_probs(model, request.prompt_ids, completion.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, rtol=1e-5, atol=1e-5)


def test_stops_at_the_stop_token_or_the_limit(model):
    completions = decode(model, requests(n=8, max_tokens=12))
    assert all(c.finished and EOS not in c.token_ids[:-1] for c in completions)
    assert all(c.token_ids[-1] == EOS or len(c.token_ids) == 12 for c in completions)
    assert {c.token_ids[-1] == EOS for c in completions} == {True, False}


def test_each_request_has_its_own_limit(model):
    reqs = [replace(request, max_tokens=1 + i) for i, request in enumerate(requests(sampling=Sampling()))]
    assert [len(c.token_ids) for c in decode(model, reqs)] == [r.max_tokens for r in reqs]


def test_greedy_is_greedy_generate(model):
    greedy = decode(model, requests(n=1, sampling=replace(SAMPLING, temperature=0)))
    config = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=EOS, pad_token_id=0)
    for prompt, completion in zip(PROMPTS, greedy, strict=True):
        generated = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :]
        assert completion.token_ids == generated.tolist()
        expected = plain_log_probs(model, prompt, completion.token_ids, 1.0)
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_left_padding_changes_nothing(model, positions):
    if positions == "learned":  # absolute: a shift shows, which rotary positions would hide
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        model = GPT2LMHeadModel(config).eval()
    alone = decode(model, [Request(PROMPTS[2], 10, SAMPLING, seed=3)])
    padded = decode(model, [Request(PROMPTS[2], 10, SAMPLING, seed=3), Request([5] * 40, 10, SAMPLING, seed=4)])
    assert_same(alone, padded[:1])


def test_top_k_and_top_p_restrict_and_renormalise(model):
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    for sampling, kept in (
        (Sampling(top_k=3), 3),
        (Sampling(top_p=0.5), int((logits.softmax(-1).sort(descending=True).values.cumsum(-1) < 0.5).sum()) + 1),
    ):
        allowed = logits.topk(kept).indices.tolist()
        drawn = decode(model, [Request(PROMPTS[0], 1, sampling, seed) for seed in range(200)])
        probs = {c.token_ids[0]: torch.tensor(c.log_probs).exp().item() for c in drawn}
        assert set(probs) <= set(allowed)
        expected = logits[allowed].softmax(-1)
        for token, p in probs.items():
            assert p == pytest.approx(expected[allowed.index(token)].item(), rel=1e-5)


def test_draw_follows_the_distribution():
    log_probs = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]).log().expand(5000, -1)
    uniforms = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    counts = draw(log_probs, uniforms).bincount(minlength=6)
    torch.testing.assert_close(counts / 5000, log_probs[0].exp(), rtol=0, atol=1e-3)
    extremes = draw(log_probs[:2], torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert extremes.tolist() == [1, 4]


def test_should_stop_returns_what_is_there(model):
    asked = iter([False, False, False, True])
    stopped = decode(model, requests(), should_stop=lambda: next(asked))
    whole = decode(model, requests())
    for part, full in zip(stopped, whole, strict=True):
        assert part.token_ids == full.token_ids[:3]
        assert part.finished == (len(full.token_ids) <= 3)
    assert not all(c.finished for c in stopped)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([Request([], 4)], "prompt"),
        ([Request([3], 0)], "max_tokens"),
        ([Request([3] * 60, 5)], "64 positions"),
        ([Request([3], 4, Sampling()), Request([3], 4, Sampling(temperature=0))], "share"),
    ],
)
def test_refuses(model, bad, message):
    with pytest.raises(ValueError, match=message):
        decode(model, bad)


def test_seeds_differ_by_every_part():
    assert len({derive_seed(*parts) for parts in [(1, 2), (1, 3), (2, 2), (12,), ("1", 2)]}) == 5
