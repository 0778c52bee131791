# SPDX-License-Identifier: Apache-2.0
"""The process that asks verl's generation servers: ``python -m cw_grpo.evaluation.servers REQUEST``.

The request, a JSON file, has ``config`` (a file: verl's configuration, resolved), ``prompts`` (a chat for each of the
benchmark's questions that is asked), ``pending`` (lists of benchmark, question, sample, seed) and ``files`` (for each
benchmark, where its answers go). A finished answer is written at once, as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import ray
from omegaconf import DictConfig, OmegaConf
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.config import HFModelConfig
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.utils import get_max_position_embeddings

from cw_grpo.stopping import stop_ids

Prompts = dict[tuple[str, int], list[int]]
"""Token ids by benchmark and question."""


def start_ray(config: DictConfig) -> None:
    """Start Ray as verl's trainer does."""
    settings: Any = OmegaConf.to_container(config.ray_kwargs.ray_init)
    runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(config), settings.pop("runtime_env", None) or {})
    ray.init(**settings, runtime_env=OmegaConf.to_container(runtime_env))


def tokenize(config: DictConfig, model: HFModelConfig, prompts: dict[str, dict[str, list]]) -> Prompts:
    """The prompts' tokens, with the model's chat template as verl's agent loops apply it.

    The servers' ``max_model_len`` is lowered to what these prompts and their answers can take.

    Raises:
        ValueError: a prompt leaves no room for an answer; names it.
    """
    builder = create_continuous_token_builder(
        model.tokenizer,
        hf_model_type=model.hf_config.model_type,
        chat_template_kwargs=OmegaConf.to_container(config.data.apply_chat_template_kwargs),
    )
    rollout = config.actor_rollout_ref.rollout
    positions = get_max_position_embeddings(model.hf_config)
    if rollout.max_model_len is None:
        rollout.max_model_len = positions
    ids: Prompts = {}
    for benchmark, chats in prompts.items():
        for question, chat in chats.items():
            tokens = ids[benchmark, int(question)] = builder.build_initial_tokens(chat)
            if len(tokens) >= rollout.max_model_len:
                raise ValueError(
                    f"{benchmark}, question {question}: a prompt of {len(tokens)} tokens leaves no room for an answer "
                    f"in {rollout.max_model_len} positions (the model has {positions})"
                )
    rollout.max_model_len = min(rollout.max_model_len, max(map(len, ids.values())) + rollout.response_length)
    return ids


async def generate(
    config: DictConfig, model: HFModelConfig, ids: Prompts, pending: list, files: dict[str, TextIO]
) -> None:
    """Start the servers, ask for every pending answer and write each when it is there."""
    stops = stop_ids(model)
    rollout = config.actor_rollout_ref.rollout
    manager = await LLMServerManager.create(config=config)
    client = manager.get_client()
    # Each server has as many to work on as it takes, and as many waiting.
    slots = asyncio.Semaphore(2 * rollout.max_num_seqs * len(manager.get_replicas()))

    async def ask(benchmark: str, question: int, sample: int, seed: int) -> None:
        prompt = ids[benchmark, question]
        limit = min(rollout.response_length, rollout.max_model_len - len(prompt))
        async with slots:
            output = await client.generate(
                uuid4().hex,
                prompt_ids=prompt,
                sampling_params={
                    "temperature": rollout.temperature,
                    "top_p": rollout.top_p,
                    "top_k": rollout.top_k,
                    "max_tokens": limit,
                    "seed": seed,
                },
            )
        tokens = list(output.token_ids)
        if output.stop_reason == "aborted" or not tokens:
            raise RuntimeError(f"{benchmark}, question {question}: the server gave no answer ({output.stop_reason})")
        answer = {
            "question": question,
            "sample": sample,
            "prompt_tokens": len(prompt),
            "tokens": len(tokens),
            "cut_off": len(tokens) >= limit and tokens[-1] not in stops,
            # As verl's reward loop reads a response.
            "text": model.tokenizer.decode(tokens, skip_special_tokens=True),
        }
        files[benchmark].write(json.dumps(answer) + "\n")
        files[benchmark].flush()

    await asyncio.gather(*(ask(*entry) for entry in pending))


def main(path: str) -> None:
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    config: Any = OmegaConf.load(request["config"])
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model, dataclass_type=HFModelConfig)
    ids = tokenize(config, model, request["prompts"])
    start_ray(config)
    with ExitStack() as stack:
        files: dict[str, TextIO] = {
            name: stack.enter_context(open(file, "a", encoding="utf-8")) for name, file in request["files"].items()
        }
        asyncio.run(generate(config, model, ids, request["pending"], files))
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
