# SPDX-License-Identifier: Apache-2.0
"""The bytes that a job needs on a GPU and on the disk: computed from its settings, never measured.

verl's FSDP shards parameters, gradients and both moments of Adam, and computes in bfloat16. What a job offloads leaves
the GPU between the phases of a step: verl loads it back for the phase that uses it. `docs/gpus.md` shows these sums for
the paper's runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from cw_grpo.checks.layout import fsdp_ulysses

_ACTOR, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
_FSDP = f"{_ACTOR}.fsdp_config"
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of a value, by `model_dtype`, in which verl's FSDP keeps parameters, gradients and moments."""
_VALUES_SAVED = {"model": 1, "optimizer": 2, "hf_model": 1}
"""Per parameter, of each of verl's `checkpoint.save_contents`."""
_COUNTED = {
    f"{_ACTOR}.strategy": ("fsdp", "fsdp2"),
    f"{_ACTOR}.optim.optimizer": ("Adam", "AdamW"),
    f"{_ACTOR}.optim.optimizer_impl": ("torch.optim",),
    f"{_FSDP}.model_dtype": tuple(_BYTES),
    f"{_FSDP}.mixed_precision.param_dtype": ("bf16",),
    f"{_FSDP}.reshard_after_forward": (True,),
    f"{_FSDP}.use_no_sync_for_gradient_accumulation": (False,),
    f"{_FSDP}.qat.enable": (False,),
    f"{_MODEL}.enable_gradient_checkpointing": (True,),
    f"{_MODEL}.enable_activation_offload": (False,),
    f"{_MODEL}.use_fused_kernels": (False,),
    f"{_ROLLOUT}.name": ("vllm",),
    f"{_ROLLOUT}.free_cache_engine": (True,),
    f"{_ROLLOUT}.enable_sleep_mode": (True,),
    "trainer.v1.trainer_mode": ("sync", "colocate_async"),
    "critic.enable": (False,),
}
"""The values of these settings for which :class:`GpuMemory` holds; null is one of them."""

_MICRO_BATCHES = (f"{_ACTOR}.ppo", f"{_ROLLOUT}.log_prob")
"""Where the settings of an update's micro-batches begin, and those of the pass for old log-probs."""


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


def model_size(path: str, trust_remote_code: bool = False) -> ModelSize:
    """The size of a model of the Hugging Face hub or of a directory, from its config alone.

    Raises:
        Exception: it cannot be read, or is not that of a causal language model. Code of the model's own, which
            ``trust_remote_code`` runs, raises anything.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    return ModelSize(
        parameters=model.num_parameters(),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
    )


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one GPU, if every response has its full length."""

    parameters: int
    """This GPU's share."""
    gradients: int
    moments: int
    """Both of Adam."""
    param_offload: bool
    optimizer_offload: bool
    gathered: int
    """The embedding, the head and one layer, gathered from all GPUs in bfloat16."""
    gathered_gradients: int
    """Theirs, of the embedding and the head also in float32."""
    kept: int
    """The inputs of the layers, for gradient checkpointing."""
    layer: int
    """The activations of one layer in an update."""
    logits: int
    """All copies of the logits in an update."""
    old_log_prob_layer: int
    """The activations of one layer in the pass for old log-probs, which has a micro-batch of its own."""
    entropy: int
    """All copies of the logits in the pass for old log-probs, which always computes the entropy."""

    @property
    def state(self) -> int:
        """Parameters, gradients and moments, which an update has on the GPU whatever is offloaded."""
        return self.parameters + self.gradients + self.moments

    @property
    def update(self) -> int:
        """The sum in an update."""
        gathered = self.gathered + self.gathered_gradients
        return self.state + gathered + self.kept + self.layer + self.logits

    @property
    def old_log_probs(self) -> int:
        """The sum in the pass for old log-probs, for which verl loads the parameters alone."""
        moments = 0 if self.optimizer_offload else self.moments
        return self.parameters + moments + self.gathered + self.old_log_prob_layer + self.entropy

    @property
    def resting(self) -> dict[str, int]:
        """What the trainer keeps beside the rollout, by the setting that offloads it."""
        kept = {
            f"{_FSDP}.optimizer_offload": 0 if self.optimizer_offload else self.moments,
            f"{_FSDP}.param_offload": 0 if self.param_offload else self.parameters,
        }
        return {key: value for key, value in kept.items() if value}

    def rollout(self, utilization: float, total: int) -> int:
        """The sum beside vLLM on a GPU of ``total`` bytes, of which vLLM takes the share ``utilization``.

        verl frees the bucket through which it sends the weights before vLLM takes its cache.
        """
        return sum(self.resting.values()) + round(utilization * total)


def uncounted(config: DictConfig) -> list[str]:
    """The settings, as `key=value`, with which a job's memory is not what :func:`gpu_memory` computes."""
    found = {key: OmegaConf.select(config, key) for key in _COUNTED}
    return [f"{key}={value}" for key, value in found.items() if value not in (None, *_COUNTED[key])]


def gpu_memory(size: ModelSize, config: DictConfig) -> GpuMemory | None:
    """The memory of a job; None if it has settings that are not counted, or if it says no micro-batch."""
    tokens, old_log_prob_tokens = (micro_batch_tokens(config, kind, size.positions) for kind in _MICRO_BATCHES)
    if uncounted(config) or tokens is None or old_log_prob_tokens is None:
        return None
    fsdp, trained = OmegaConf.select(config, _FSDP), _trained(config)
    # With FSDP2's own offloading, the state stays in the CPU's memory in every phase.
    on_cpu = fsdp.offload_policy and config.actor_rollout_ref.actor.strategy == "fsdp2"
    share = 0 if on_cpu else _bytes_per_value(config) * size.parameters // _shards(config)
    packed = OmegaConf.select(config, f"{_MODEL}.use_remove_padding")
    logits = size.vocabulary * 2  # of a token
    layer = (10 * size.hidden + 5 * size.intermediate) * 2
    # Packed: the head's output, the same divided by the temperature, a gradient; flash-attn's cross entropy works in
    # place. Padded: these, the valid rows, their log-softmax, and the gradients of each on the way back.
    copies = 3 if packed else 8
    # The head's output, divided, softmax, product; padded, also the valid rows. Chunks are of packed rows only.
    entropy_copies = (2 if fsdp.entropy_from_logits_with_chunking else 4) if packed else 5
    one_layer = (size.parameters - 2 * size.embedding) // size.layers
    return GpuMemory(
        parameters=share,
        gradients=trained * share,
        moments=trained * 2 * share,
        param_offload=fsdp.param_offload,
        optimizer_offload=fsdp.optimizer_offload,
        gathered=4 * size.embedding + 2 * one_layer,
        gathered_gradients=trained * (8 * size.embedding + 2 * one_layer),
        kept=tokens * size.hidden * 2 * size.layers,
        layer=layer * tokens,
        logits=copies * logits * tokens,
        old_log_prob_layer=layer * old_log_prob_tokens,
        entropy=entropy_copies * logits * old_log_prob_tokens,
    )


def _bytes_per_value(config: DictConfig) -> int:
    """Of parameters, gradients and moments; float32 is verl's default."""
    return _BYTES.get(OmegaConf.select(config, f"{_FSDP}.model_dtype"), 4)


def _trained(config: DictConfig) -> bool:
    """Whether the model's parameters are trained. LoRA freezes them; its adapters are too small to be counted.

    verl's FSDP trains adapters with `lora_rank` only; `lora.rank` is Megatron's.
    """
    return not OmegaConf.select(config, f"{_MODEL}.lora_rank")


def _gpus(config: DictConfig) -> int:
    return int(config.trainer.nnodes * config.trainer.n_gpus_per_node)


def _shards(config: DictConfig) -> int:
    """The GPUs over which verl's FSDP shards: all, or the `fsdp_size` of a hybrid."""
    gpus = _gpus(config)
    size = OmegaConf.select(config, f"{_FSDP}.fsdp_size")
    return size if 0 < size < gpus else gpus


def micro_batch_tokens(config: DictConfig, kind: str, positions: int) -> int | None:
    """The most tokens of a micro-batch on one GPU; None if the job does not say.

    Args:
        config: the job's.
        kind: the settings' common beginning, one of those in ``_MICRO_BATCHES``.
        positions: that the model has.
    """
    if config.actor_rollout_ref.actor.use_dynamic_bsz:  # verl demands the same of the rollout's
        return OmegaConf.select(config, f"{kind}_max_token_len_per_gpu")
    micro = OmegaConf.select(config, f"{kind}_micro_batch_size_per_gpu")
    if micro is None:
        return None
    length = min(config.data.max_prompt_length + config.data.max_response_length, positions)
    return math.ceil(micro * length / fsdp_ulysses(config))


def checkpoint_bytes(parameters: int, config: DictConfig) -> int:
    """The size of one of the job's checkpoints. Every GPU saves its shard, and of a hybrid several have the same."""
    contents = OmegaConf.select(config, f"{_ACTOR}.checkpoint.save_contents", default=("model", "optimizer", "extra"))
    copies = _gpus(config) // _shards(config)
    saved = [
        _VALUES_SAVED.get(name, 0) * (1 if name == "hf_model" else copies)
        for name in contents
        if name != "optimizer" or _trained(config)
    ]
    return _bytes_per_value(config) * parameters * sum(saved)


def checkpoints_at_once(config: DictConfig, step: int = 0) -> int:
    """How many checkpoints of a start lie on the disk at most: verl deletes the only one after the next is written.

    That of ``step``, from which the start resumes, is not one of them: verl deletes none of an earlier start.
    """
    trainer = config.trainer
    every, steps, keep = (trainer.get(key) for key in ("save_freq", "total_training_steps", "max_actor_ckpt_to_keep"))
    if not every or every < 0:
        return 0
    saved = math.ceil(steps / every) - step // every if steps else 2
    if not keep:
        return saved
    return min(saved, max(keep, 2))
