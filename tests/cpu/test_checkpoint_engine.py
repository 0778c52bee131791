# SPDX-License-Identifier: Apache-2.0
"""Weights through the store arrive as they were sent, in order, whatever their size."""

from __future__ import annotations

import asyncio

import torch
from verl.checkpoint_engine import CheckpointEngineRegistry

from cw_grpo.cpu.checkpoint_engine import CHUNK_BYTES


def test_weights_arrive(monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    master, follower = (CheckpointEngineRegistry.new("store", bucket_size=1, is_master=m) for m in (True, False))
    readers = [CheckpointEngineRegistry.new("store", bucket_size=1) for _ in range(2)]
    weights = {
        "small": torch.randn(3, 5),
        "scalar": torch.tensor(2.0),
        "half": torch.randn(7).bfloat16(),
        "strided": torch.randn(4, 6).T.contiguous(),
        "large": torch.randn(CHUNK_BYTES // 4 + 3, 2),
    }

    async def read(reader) -> dict[str, torch.Tensor]:
        return {name: tensor async for name, tensor in reader.receive_weights()}

    async def transfer() -> list[dict[str, torch.Tensor]]:
        reading = [asyncio.create_task(read(reader)) for reader in readers]
        await asyncio.gather(master.send_weights(iter(weights.items())), follower.send_weights(iter(weights.items())))
        return await asyncio.gather(*reading)

    for _ in range(2):  # a store per transfer
        metadata = [engine.prepare() for engine in (master, follower, *readers)]
        trainer, rollout = type(master).build_topology(2, 2, metadata)
        for engine, address in zip((master, follower, *readers), trainer["address"] + rollout["address"], strict=True):
            engine.init_process_group(address)
        for received in asyncio.run(asyncio.wait_for(transfer(), 60)):
            assert list(received) == list(weights)
            for name, tensor in received.items():
                torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
        for engine in (master, follower, *readers):
            engine.finalize()
        weights["small"] += 1
