# SPDX-License-Identifier: Apache-2.0
"""The rollout server: verl's sampling parameters, repeatable samples, aborts and weight updates. No Ray needed."""

from __future__ import annotations

import asyncio
import pickle
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import torch
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.replica import TokenOutput

from cw_grpo.cpu import rollout
from cw_grpo.cpu.rollout import TransformersServer, pack_weight, unpack_weight

EOS = 1
PROMPT, OTHER = [2, 12, 3, 16], [5, 6, 7, 16]
PARAMS = {"temperature": 0.8, "top_p": 1, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


class Served:
    """A server on an event loop that runs while a test waits for something."""

    def __init__(self, server: TransformersServer) -> None:
        self.server = server
        self.loop = asyncio.new_event_loop()
        self.run(server.launch_server())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout=60))

    def sample(self, prompts: list[list[int]], request_id: str = "det-0", **params: Any) -> list[TokenOutput]:
        async def all_at_once() -> list[TokenOutput]:
            calls = (self.server.generate(prompt, {**PARAMS, **params}, request_id) for prompt in prompts)
            return await asyncio.gather(*calls)

        return self.run(all_at_once())

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


@pytest.fixture
def make_server(model_path) -> Iterator[Callable[..., Served]]:
    servers = []

    def make(**settings: Any) -> Served:
        config = {"dtype": "float32", "prompt_length": 16, "response_length": 12, "max_num_seqs": 8, **settings}
        model_config = HFModelConfig(path=str(model_path), use_remove_padding=False)
        servers.append(Served(TransformersServer(RolloutConfig(name="transformers", **config), model_config)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def tokens(outputs: list[TokenOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def test_samples_repeat_whatever_the_batches(make_server):
    prompts = [PROMPT] * 5 + [OTHER] * 5
    first = tokens(make_server().sample(prompts))
    assert len({tuple(t) for t in first}) > 5
    assert tokens(make_server(max_num_seqs=3).sample(prompts)) == first
    interleaved = tokens(make_server().sample([p for pair in zip(prompts[:5], prompts[5:], strict=True) for p in pair]))
    assert interleaved[0::2] + interleaved[1::2] == first


def test_samples_change_with_seed_request_and_weights(make_server):
    server = make_server()
    runs = [tokens(server.sample([PROMPT] * 4)) for _ in range(2)]
    server.run(server.server.set_global_steps(1))
    runs.append(tokens(server.sample([PROMPT] * 4)))
    runs.append(tokens(make_server().sample([PROMPT] * 4, request_id="det-1")))
    runs.append(tokens(make_server(seed=7).sample([PROMPT] * 4)))
    assert len({str(run) for run in runs}) == len(runs)
    server.run(server.server.set_global_steps(1))  # counts anew
    assert tokens(server.sample([PROMPT] * 4)) == runs[2]


def test_a_seed_of_the_request_decides_alone(make_server):
    first = tokens(make_server().sample([PROMPT] * 2, seed=3))
    assert first[0] == first[1]
    server = make_server(seed=7)
    assert tokens(server.sample([PROMPT], request_id="det-1", seed=3)) == first[:1]
    assert tokens(server.sample([PROMPT], seed=4)) != first[:1]
    assert tokens(server.sample([PROMPT] * 2)) == tokens(make_server(seed=7).sample([PROMPT] * 2))


def test_validation_does_not_shift_the_samples(make_server):
    server, validated = make_server(), make_server()
    greedy = validated.sample([PROMPT] * 2, temperature=0)
    assert greedy[0].token_ids == greedy[1].token_ids
    assert tokens(validated.sample([PROMPT] * 3)) == tokens(server.sample([PROMPT] * 3))


def test_output_is_what_verl_reads(make_server):
    server = make_server()
    server.run(server.server.set_global_steps(5))
    with_log_probs = server.sample([PROMPT])[0]
    assert len(with_log_probs.log_probs) == len(with_log_probs.token_ids) <= 12
    assert with_log_probs.stop_reason == "completed"
    assert with_log_probs.extra_fields["global_steps"] == 5
    assert server.sample([PROMPT], logprobs=False)[0].log_probs is None


def test_limits_and_stop_ids(make_server):
    server = make_server()
    assert all(len(t) <= 3 for t in tokens(server.sample([PROMPT] * 8, max_tokens=3)))
    assert all(len(t) == 12 for t in tokens(server.sample([PROMPT] * 8, ignore_eos=True)))
    stopped = tokens(server.sample([PROMPT] * 8, stop_token_ids=list(range(2, 40))))
    assert all(len(t) == 1 for t in stopped)
    # verl's budget: a prompt over prompt_length takes from the response
    assert len(server.sample([[5] * 20], ignore_eos=True)[0].token_ids) == 8
    assert len(server.sample([[5] * 60], ignore_eos=True, max_tokens=50)[0].token_ids) == 4


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([5] * 64, {}, "64 positions"),
        (PROMPT, {"min_p": 0.1}, "min_p"),
        (PROMPT, {"repetition_penalty": 1.2}, "repetition_penalty"),
    ],
)
def test_refuses(make_server, prompt, params, message):
    with pytest.raises(ValueError, match=message):
        make_server().sample([prompt], **params)


def test_refuses_settings(make_server):
    with pytest.raises(ValueError, match="64 positions"):
        make_server(max_model_len=65)


def test_a_failing_batch_fails_its_requests_only(make_server, monkeypatch):
    server = make_server()
    real = rollout.decode

    def failing_once(*args: Any) -> Any:
        monkeypatch.setattr(rollout, "decode", real)
        raise MemoryError("no room")

    monkeypatch.setattr(rollout, "decode", failing_once)

    async def work() -> Any:
        with pytest.raises(MemoryError):
            await server.server.generate(PROMPT, dict(PARAMS), "a")
        return await server.server.generate(PROMPT, dict(PARAMS), "a")

    assert server.run(work()).token_ids


def test_a_cancelled_request_does_not_stop_the_server(make_server):
    server = make_server()

    async def work() -> TokenOutput:
        cancelled = asyncio.create_task(server.server.generate(PROMPT, dict(PARAMS), "a"))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await server.server.generate(PROMPT, dict(PARAMS), "a")

    assert server.run(work()).token_ids


def test_abort_and_resume(make_server, monkeypatch):
    server = make_server()
    started, go_on = threading.Event(), threading.Event()
    real = rollout.decode

    def slow(model: Any, requests: Any, should_stop: Callable[[], bool]) -> Any:
        asked = 0

        def pause_at_third_token() -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                started.set()
                go_on.wait(30)
            return should_stop()

        return real(model, requests, pause_at_third_token)

    monkeypatch.setattr(rollout, "decode", slow)
    params = {**PARAMS, "ignore_eos": True}

    async def work() -> tuple:
        running = asyncio.create_task(server.server.generate(PROMPT, dict(params), "a"))
        await asyncio.to_thread(started.wait, 30)
        waiting = asyncio.create_task(server.server.generate(OTHER, dict(params), "a"))
        await asyncio.sleep(0)
        abort = asyncio.create_task(server.server.abort_all_requests())
        await asyncio.sleep(0)
        go_on.set()
        await abort
        cut, unstarted = await running, await waiting
        late = asyncio.create_task(server.server.generate(PROMPT, dict(params), "b"))
        await asyncio.sleep(0.1)
        held_back = not late.done()
        await server.server.resume_generation()
        whole = await late
        await server.server.abort_all_requests(reject_request=True)
        rejected = await server.server.generate(PROMPT, dict(params), "c")
        return cut, unstarted, held_back, whole, rejected

    cut, unstarted, held_back, whole, rejected = server.run(work())
    assert (cut.stop_reason, len(cut.token_ids), len(cut.log_probs)) == ("aborted", 2, 2)
    assert (unstarted.stop_reason, unstarted.token_ids) == ("aborted", [])
    assert held_back
    assert (whole.stop_reason, len(whole.token_ids)) == ("completed", 12)
    assert (rejected.stop_reason, rejected.token_ids) == ("aborted", [])


def test_update_weights(make_server):
    server = make_server()
    before = tokens(server.sample([PROMPT], temperature=0, ignore_eos=True))
    state = {name: torch.randn_like(value) for name, value in server.server.model.state_dict().items()}
    names = list(state)
    for part in (names[:3], names[3:]):
        server.run(server.server.update_weights({name: pack_weight(state[name]) for name in part}))
    for name, value in server.server.model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert tokens(server.sample([PROMPT], temperature=0, ignore_eos=True)) != before
    with pytest.raises(KeyError, match="nonsense"):
        server.run(server.server.update_weights({"nonsense": pack_weight(torch.zeros(1))}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3), (2, 1, 5)])
def test_a_packed_weight_has_its_values_after_ray_sent_it(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(torch.randn(shape).to(dtype), requires_grad=dtype.is_floating_point)
    for tensor in (weight, weight.mT if weight.ndim == 2 else weight):
        buffers: list[pickle.PickleBuffer] = []
        sent = pickle.dumps(pack_weight(tensor), protocol=5, buffer_callback=buffers.append)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = unpack_weight(*pickle.loads(sent, buffers=[bytes(buffer.raw()) for buffer in buffers]))
        assert got.dtype == dtype
        torch.testing.assert_close(got, tensor.detach(), rtol=0, atol=0)
