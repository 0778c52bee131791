# SPDX-License-Identifier: Apache-2.0
"""verl's rollout ``transformers``: a replica that samples with :mod:`cw_grpo.cpu.decode`, for runs on CPU cores.

It stands where verl's vLLM server stands and keeps to the same contract: token ids in, token ids and log-probabilities
out, weights pushed by the trainer, requests aborted and resumed around a weight update.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from transformers import AutoModelForCausalLM
from verl.utils import normalize_token_ids
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from cw_grpo.cpu.decode import Completion, Request, Sampling, decode, derive_seed
from cw_grpo.stopping import stop_ids

# verl sends the requests of a step one by one, and a batch that has started admits nobody: wait this long after the
# latest arrival before starting one.
GATHER_SECONDS = 0.03


# The integers, by size, as which the bits of a weight are sent: numpy has no bfloat16.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack_weight(tensor: torch.Tensor) -> tuple[np.ndarray, torch.dtype]:
    """A tensor as Ray sends it with one copy, into shared memory; torch's own pickling takes several."""
    return tensor.detach().view(BITS[tensor.itemsize]).numpy(), tensor.dtype


def unpack_weight(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of :func:`pack_weight`, to be read only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(dtype)


def _server_name(rollout_name: str, replica_rank: int) -> str:
    return f"{rollout_name}_server_{replica_rank}_0"


def _resolve(future: asyncio.Future, result: Completion | Exception) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class TransformersServer:
    """One replica: a model, the requests that wait for it, and the loop that decodes them in batches.

    The tokens sampled for a request depend on its prompt and ``seed``; without one on ``rollout.seed``, the version of
    the weights, the prompt, the request id and how many requests with this prompt and id came before it since the
    weights changed. They do not depend on the batch or on the number of replicas. Under ``rollout.full_determinism``
    verl's request ids repeat from run to run (otherwise they are random) and its router sends equal ids to the same
    replica.
    """

    def __init__(self, config: Any, model_config: Any) -> None:
        self.config = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        # The trainer's weights replace these before the first request; a server without a trainer keeps them.
        self.model = AutoModelForCausalLM.from_pretrained(
            self.model_config.local_path,
            dtype=PrecisionType.to_dtype(self.config.dtype),
            attn_implementation="sdpa",
            trust_remote_code=self.model_config.trust_remote_code,
        ).eval()
        self._stop_ids = stop_ids(self.model_config)
        limit = self.model.config.max_position_embeddings
        self._positions = self.config.max_model_len or limit
        if self._positions > limit:
            raise ValueError(f"rollout.max_model_len={self._positions} exceeds the model's {limit} positions")
        self.global_steps: int | None = None
        self._seen: Counter[tuple] = Counter()
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._arrival = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._rejecting = False
        self._stop = threading.Event()
        self._model_lock = asyncio.Lock()

    async def launch_server(self) -> None:
        """Starts the loop that serves requests."""
        self._loop = asyncio.create_task(self._serve())

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: Any = None,
        video_data: Any = None,
        audio_data: Any = None,
        mm_processor_kwargs: Any = None,
    ) -> TokenOutput:
        """Samples one response.

        Args:
            prompt_ids: the token ids of the prompt.
            sampling_params: verl's: ``temperature``, ``top_p``, ``top_k``, ``max_tokens`` (or ``max_new_tokens``),
                ``logprobs``, ``stop_token_ids``, ``ignore_eos``, ``seed``, and ``repetition_penalty`` if it is 1.
            request_id: goes into the seed of the request's random numbers, if ``seed`` does not say it.

        Returns:
            The sampled token ids, their log-probabilities if asked for, and the version of the weights.

        Raises:
            ValueError: for a sampling parameter this rollout does not have, or a prompt that fills all positions.
            NotImplementedError: for images, video or audio.
        """
        if image_data or video_data or audio_data:
            raise NotImplementedError("the transformers rollout is for text only")
        while not self._open.is_set():
            if self._rejecting:
                return self._output(Completion(finished=False), with_log_probs=False)
            await self._open.wait()
        request, with_log_probs = self._request(normalize_token_ids(prompt_ids), dict(sampling_params), request_id)
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._arrival.set()
        return self._output(await future, with_log_probs)

    def _request(self, prompt_ids: list[int], params: dict[str, Any], request_id: str) -> tuple[Request, bool]:
        room = self._positions - len(prompt_ids)
        if room < 1:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens leaves no room in {self._positions} positions")
        default = min(
            self.config.response_length, self.config.prompt_length + self.config.response_length - len(prompt_ids)
        )
        max_tokens = params.pop("max_tokens", params.pop("max_new_tokens", default))
        with_log_probs = bool(params.pop("logprobs", False))
        stops = frozenset() if params.pop("ignore_eos", self.config.ignore_eos) else self._stop_ids
        stops |= frozenset(params.pop("stop_token_ids", None) or ())
        sampling = Sampling(
            params.pop("temperature", 1.0), params.pop("top_p", 1.0), params.pop("top_k", -1), stop_ids=stops
        )
        if params.get("repetition_penalty") == 1:
            del params["repetition_penalty"]
        seed = params.pop("seed", None)
        if params:
            raise ValueError(f"the transformers rollout cannot sample with {params}")
        # Greedy validation must not shift the numbering of the sampled requests.
        if seed is None and sampling.temperature != 0:
            key = (self.global_steps, request_id, tuple(prompt_ids))
            seed = derive_seed(self.config.seed, *key, self._seen[key])
            self._seen[key] += 1
        return Request(prompt_ids, max(1, min(max_tokens, room)), sampling, seed or 0), with_log_probs

    def _output(self, completion: Completion, with_log_probs: bool) -> TokenOutput:
        return TokenOutput(
            token_ids=completion.token_ids,
            log_probs=completion.log_probs if with_log_probs else None,
            stop_reason="completed" if completion.finished else "aborted",
            extra_fields={"global_steps": self.global_steps},
        )

    async def _serve(self) -> None:
        while True:
            await self._arrival.wait()
            seen = 0
            while seen < len(self._waiting) < self.config.max_num_seqs:
                seen = len(self._waiting)
                await asyncio.sleep(GATHER_SECONDS)
            if not self._waiting:
                self._arrival.clear()
                continue
            sampling = self._waiting[0][0].sampling
            batch = [entry for entry in self._waiting if entry[0].sampling == sampling][: self.config.max_num_seqs]
            taken = {id(future) for _, future in batch}
            self._waiting = [entry for entry in self._waiting if id(entry[1]) not in taken]
            completions: Sequence[Completion | Exception]
            try:
                async with self._model_lock:
                    completions = await asyncio.to_thread(
                        decode, self.model, [request for request, _ in batch], self._stop.is_set
                    )
            except Exception as error:
                completions = [error] * len(batch)
            for (_, future), result in zip(batch, completions, strict=True):
                _resolve(future, result)

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Returns all running and waiting requests as they are, and holds new ones back until ``resume_generation``.

        Args:
            reject_request: return new requests at once, without tokens, instead of holding them back.
        """
        self._rejecting = reject_request
        self._open.clear()
        self._stop.set()
        for _, future in self._waiting:
            _resolve(future, Completion(finished=False))
        self._waiting.clear()
        async with self._model_lock:  # the running batch has ended
            self._stop.clear()

    async def resume_generation(self) -> None:
        """Admits requests again."""
        self._rejecting = False
        self._open.set()

    async def update_weights(self, packed: dict[str, tuple[np.ndarray, torch.dtype]]) -> None:
        """Takes over some of the model's weights, by their names in its state dict.

        Args:
            packed: of each weight, what :func:`pack_weight` makes of it.

        Raises:
            KeyError: for a name the model does not have.
        """
        weights = {name: unpack_weight(*weight) for name, weight in packed.items()}
        async with self._model_lock:
            unexpected = self.model.load_state_dict(weights, strict=False).unexpected_keys
        if unexpected:
            raise KeyError(f"the model has no weights {unexpected}")

    async def set_global_steps(self, global_steps: int) -> None:
        """Names the version of the weights; requests count anew from here."""
        self.global_steps = global_steps
        self._seen.clear()

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Nothing to do: model and cache share the machine's memory with everything else."""

    async def sleep(self) -> None:
        """Nothing to free."""

    async def clear_kv_cache(self) -> None:
        """Nothing to clear: no cache outlives its batch."""

    async def release_kv_cache(self) -> None:
        """Nothing to free."""

    async def resume_kv_cache(self) -> None:
        """Nothing to restore."""

    async def start_profile(self, **kwargs: Any) -> None:
        """No profiler."""

    async def stop_profile(self) -> None:
        """No profiler."""


class TransformersReplica(RolloutReplica):
    """One :class:`TransformersServer` per worker of the trainer."""

    async def launch_servers(self) -> None:
        """Starts the server of this replica.

        Raises:
            ValueError: if the replica is to span several workers.
            RuntimeError: on a platform other than ``cpu``.
        """
        if get_device_name() != "cpu":
            raise RuntimeError("rollout.name=transformers is for runs without an accelerator: set VERL_PLATFORM=cpu")
        if self.world_size != 1:
            raise ValueError(
                "the transformers rollout cannot split a model: set rollout.tensor_model_parallel_size, "
                "rollout.data_parallel_size and rollout.pipeline_model_parallel_size to 1"
            )
        name = _server_name(self.config.name, self.replica_rank)
        # Where its worker is: Ray would put all servers on one machine.
        node = await self.workers[0].__ray_call__.remote(lambda worker: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(TransformersServer)
            .options(
                name=name,
                max_concurrency=self.max_concurrency,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self.config, self.model_config)
        )
        await server.launch_server.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = name


class TransformersAdapter(BaseRollout):
    """The trainer's side of a :class:`TransformersServer`: finds the server of this worker and sends it weights."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True
        self._server: ray.actor.ActorHandle | None = None

    @property
    def server(self) -> ray.actor.ActorHandle:
        """The server, which verl starts after this adapter."""
        if self._server is None:
            self._server = ray.get_actor(_server_name(self.config.name, self.replica_rank))
        return self._server

    async def resume(self, tags: list[str]) -> None:
        """Nothing to do: the server never gives up memory."""

    async def release(self) -> None:
        """Nothing to do: the server never gives up memory."""

    async def update_weights(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Sends the model's weights to the server in buckets, then the version they belong to.

        Args:
            weights: pairs of name and tensor, as verl's engines yield them.
            wire_format: only ``named_tensors``.
            global_steps: the version.

        Raises:
            NotImplementedError: for deltas, and for LoRA adapters that are not merged.
        """
        if wire_format != "named_tensors" or kwargs.get("peft_config") is not None:
            raise NotImplementedError("the transformers rollout takes whole, merged weights only")
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        bucket: dict[str, tuple[np.ndarray, torch.dtype]] = {}
        size = 0
        async for name, tensor in ensure_async_iterator(weights):
            bucket[name] = pack_weight(tensor)
            size += tensor.nbytes
            if size >= limit:
                await self.server.update_weights.remote(bucket)
                bucket, size = {}, 0
        if bucket:
            await self.server.update_weights.remote(bucket)
        if global_steps is not None:
            await self.server.set_global_steps.remote(global_steps)
