# SPDX-License-Identifier: Apache-2.0
"""verl's checkpoint engine ``store``: weights from a trainer to rollout servers of their own, through torch's TCPStore.

For ``trainer.v1.trainer_mode=separate_async`` on CPU cores, where verl's engines all need an accelerator or its fabric.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import ray
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from verl.checkpoint_engine.base import (
    CheckpointEngine,
    CheckpointEngineRegistry,
    TensorMeta,
    merge_weight_chunks,
    split_weight_chunks,
)

CHUNK_BYTES = 4 << 20  # TCPStore takes values of up to 8 MiB


@CheckpointEngineRegistry.register("store")
class StoreCheckpointEngine(CheckpointEngine):
    """Rank 0 of the trainer serves a store for each transfer and writes the weights in chunks; all servers read them.

    Args:
        bucket_size: not used, a store limits the size of a value.
        is_master: whether this is rank 0 of the trainer.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.is_master = is_master
        self._store: Any = None  # a TCPStore, whose type takes str but whose set takes bytes

    def prepare(self) -> dict[str, Any] | None:
        """Opens the store on rank 0 of the trainer and returns where it is; elsewhere returns None."""
        if not self.is_master:
            return None
        host = ray.util.get_node_ip_address().strip("[]")
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return {"host": host, "port": self._store.port}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict | None]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Tells the readers where the store is: ``metadata`` holds what ``prepare`` returned, the trainer's first."""
        return {"address": [None] * actor_wg_world_size}, {"address": [metadata[0]] * rollout_world_size}

    def init_process_group(self, address: dict[str, Any] | None) -> None:
        """Connects a reader to the store; nothing to do for the trainer."""
        if address is not None:
            self._store = TCPStore(address["host"], address["port"], is_master=False)

    def finalize(self) -> None:
        """Closes the store, and with it forgets the weights."""
        self._store = None

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Writes the weights. Every rank of the trainer must call this: gathering a sharded weight is collective."""
        index = 0
        async for meta, chunk in split_weight_chunks(weights, CHUNK_BYTES):
            if self.is_master:
                self._store.set(str(index), pickle.dumps((meta, chunk.numpy().tobytes())))
            index += 1
        if self.is_master:
            self._store.set(str(index), pickle.dumps(None))

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Yields the weights as they come, by name."""

        async def chunks() -> AsyncGenerator[tuple[TensorMeta, torch.Tensor], None]:
            index = 0
            while (entry := pickle.loads(await asyncio.to_thread(self._store.get, str(index)))) is not None:
                meta, data = entry
                yield meta, torch.frombuffer(bytearray(data), dtype=torch.uint8)
                index += 1

        async for named in merge_weight_chunks(chunks(), CHUNK_BYTES):
            yield named
