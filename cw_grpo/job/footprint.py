# SPDX-License-Identifier: Apache-2.0
"""The bytes that a job needs on a GPU and on the disk: computed from its settings, never measured.

verl's FSDP keeps parameters, gradients and both moments of Adam in float32, sharded over all GPUs, and computes in
bfloat16. `docs/gpus.md` shows these sums for the paper's runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
_BYTES_SAVED = {"model": 4, "optimizer": 8, "hf_model": 4}
"""Per parameter, of each of verl's `checkpoint.save_contents`."""


@dataclass(frozen=True)
class ModelSize:
    """What a model's memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.vocabulary * self.hidden


def model_size(path: str) -> ModelSize:
    """The size of a model of the Hugging Face hub or of a directory, from its config alone.

    Raises:
        ValueError: the config is not that of a causal language model that transformers knows.
        OSError: it cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    text = config.get_text_config()
    return ModelSize(
        parameters=parameters,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
    )


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one GPU, if every response has its full length."""

    state: int
    """Parameters, gradients and both moments of Adam; without the moments if they are offloaded."""
    unsharded: int
    """The embedding and the head (bfloat16, gradients also in float32) and one layer, gathered from all GPUs."""
    kept: int
    """The inputs of the layers, for gradient checkpointing."""
    layer: int
    """The activations of one layer."""
    logits: int
    """All copies of the logits in an update."""
    entropy: int
    """All copies of the logits in the pass for old log-probs, which always computes the entropy."""
    resting: int
    """Parameters and moments beside the rollout."""
    bucket: int
    """Through which the weights reach the rollout."""

    @property
    def update(self) -> int:
        """The sum in an update."""
        return self.state + self.unsharded + self.kept + self.layer + self.logits

    @property
    def old_log_probs(self) -> int:
        """The sum in the pass for old log-probs."""
        return self.resting + self.unsharded + self.layer + self.entropy

    def rollout(self, utilization: float, total: int) -> int:
        """The sum beside vLLM on a GPU of ``total`` bytes, of which vLLM takes the share ``utilization``."""
        return self.resting + self.bucket + round(utilization * total)


def gpu_memory(size: ModelSize, config: DictConfig) -> GpuMemory | None:
    """The memory of a job on FSDP; None for another engine, or if it says no micro-batch."""
    if not str(OmegaConf.select(config, f"{_ACTOR}.strategy")).startswith("fsdp"):
        return None
    if (tokens := micro_batch_tokens(config, size.positions)) is None:
        return None
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    moments = 0 if OmegaConf.select(config, f"{_ACTOR}.fsdp_config.optimizer_offload") else 8
    packed = OmegaConf.select(config, "actor_rollout_ref.model.use_remove_padding")
    chunks = OmegaConf.select(config, f"{_ACTOR}.fsdp_config.entropy_from_logits_with_chunking")
    one_copy = tokens * size.vocabulary * 2
    # Packed: the head's output, the same divided by the temperature, a gradient; flash-attn's cross entropy works in
    # place. Padded: these, the valid rows, their log-softmax, and the gradients of each on the way back.
    copies = 3 if packed else 8
    # The head's output, divided, softmax, product; padded, also the valid rows. Chunks are of packed rows only.
    entropy_copies = (2 if chunks else 4) if packed else 5
    one_layer = (size.parameters - 2 * size.embedding) // size.layers
    return GpuMemory(
        state=(8 + moments) * size.parameters // gpus,
        unsharded=12 * size.embedding + 4 * one_layer,
        kept=tokens * size.hidden * 2 * size.layers,
        layer=(10 * size.hidden + 5 * size.intermediate) * 2 * tokens,
        logits=copies * one_copy,
        entropy=entropy_copies * one_copy,
        resting=(4 + moments) * size.parameters // gpus,
        bucket=OmegaConf.select(config, f"{_ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes") << 20,
    )


def micro_batch_tokens(config: DictConfig, positions: int) -> int | None:
    """The most tokens of an update's micro-batch on one GPU; None if the job does not say."""
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return actor.ppo_max_token_len_per_gpu
    micro = actor.ppo_micro_batch_size_per_gpu
    if micro is None:
        return None
    length = min(config.data.max_prompt_length + config.data.max_response_length, positions)
    return math.ceil(micro * length / actor.ulysses_sequence_parallel_size)


def checkpoint_bytes(parameters: int, config: DictConfig) -> int:
    """The size of one of the job's checkpoints."""
    contents = OmegaConf.select(config, f"{_ACTOR}.checkpoint.save_contents", default=("model", "optimizer", "extra"))
    return parameters * sum(_BYTES_SAVED.get(name, 0) for name in contents)


def checkpoints_at_once(config: DictConfig) -> int:
    """How many checkpoints lie on the disk at most: verl deletes the only one after the next one is written."""
    trainer = config.trainer
    every, steps, keep = (trainer.get(key) for key in ("save_freq", "total_training_steps", "max_actor_ckpt_to_keep"))
    if not every or every < 0:
        return 0
    saved = math.ceil(steps / every) if steps else 2
    if not keep:
        return saved
    return min(saved, max(keep, 2))
