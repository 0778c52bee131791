# SPDX-License-Identifier: Apache-2.0
"""How a job's batch is cut over its GPUs, and whether verl's workers can cut it so.

verl's `validate_config` compares the batch with the number of GPUs alone. The rest is asserted by the workers, when the
first step reaches them, without the names of the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from omegaconf import DictConfig, OmegaConf

from ..settings import LOSSES, bypasses_old_log_probs, describe, loss_mode

_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"
_REF = "actor_rollout_ref.ref"
_ULYSSES = f"{_ACTOR}.ulysses_sequence_parallel_size"
_MEGATRON = tuple(f"{_ACTOR}.megatron.{kind}_parallel_size" for kind in ("tensor_model", "pipeline_model", "context"))
_LARGEST = 64
"""GPUs up to which numbers are suggested."""


@dataclass(frozen=True)
class Layout:
    """The numbers that decide it."""

    gpus: int
    shared: int
    """GPUs that share a sequence; the others are data-parallel ranks."""
    shared_keys: tuple[str, ...]
    """The settings whose product ``shared`` is."""
    prompts: int
    """Of a batch."""
    whole_batch: int
    """Prompts of `data.train_batch_size`, of which an asynchronous trainer takes a part at a time."""
    mini_batch: int
    """Prompts of an update."""
    n: int
    """Responses to a prompt."""
    micro: int | None
    """Rows of a rank's micro-batch in an update; None where batches are dynamic."""
    log_prob: tuple[tuple[str, int], ...]
    """The other passes' settings and micro-batches, where batches are not dynamic."""
    loss: str | None
    """The policy loss that needs whole groups, if the job has one."""

    @property
    def ranks(self) -> int:
        return self.gpus // self.shared

    @property
    def rows(self) -> int:
        """Of an update, over all ranks."""
        return self.mini_batch * self.n

    @property
    def batch_rows(self) -> int:
        """Of a batch, which verl fills up to whole updates."""
        return math.ceil(self.prompts / self.mini_batch) * self.rows

    def problem(self) -> str | None:
        """Why the workers could not cut the batch so; None where they can."""
        if self.gpus % self.shared:
            return f"{self.shared} GPUs share a sequence ({_product(self.shared_keys)}), which does not divide {self}"
        if self.rows % self.ranks:
            return (
                f"{self} are {self.ranks} data-parallel ranks, which do not divide the {self.rows} rows of an update "
                f"({_ACTOR}.ppo_mini_batch_size={self.mini_batch} x {_ROLLOUT}.n={self.n})"
            )
        if self.loss is not None and self.mini_batch % self.ranks:
            return (
                f"{self} are {self.ranks} data-parallel ranks, and policy loss {self.loss} needs whole groups on each: "
                f"they do not divide the {self.mini_batch} groups of an update ({_ACTOR}.ppo_mini_batch_size)"
            )
        if self.micro is not None and self.shared_keys == (_ULYSSES,) and self.whole_batch * self.n % self.gpus:
            return (
                f"{self} do not divide the {self.whole_batch * self.n} rows of a batch (data.train_batch_size="
                f"{self.whole_batch} x {_ROLLOUT}.n={self.n}), which verl demands of FSDP without dynamic batches"
            )
        update = [] if self.micro is None else [(f"{_ACTOR}.ppo_micro_batch_size_per_gpu", self.micro, self.rows)]
        passes = update + [(key, micro, self.batch_rows) for key, micro in self.log_prob]
        for key, micro, rows in passes:
            if rows // self.ranks % micro:
                return (
                    f"{self} are {self.ranks} data-parallel ranks of {rows // self.ranks} rows each, which {key}="
                    f"{micro} does not divide"
                )
        return None

    def ways_out(self) -> list[str]:
        """Changes of one setting each with which they could, in words."""

        def working(values: Iterable[int], change: Callable[[int], Layout]) -> str:
            return _either([value for value in values if change(value).problem() is None])

        ways = []
        if found := working(range(1, self.gpus + 1), lambda size: replace(self, shared=size)):
            ways.append(f"{_product(self.shared_keys)} of {found} (the model's attention heads must divide by it)")
        if found := working(range(1, _LARGEST + 1), lambda gpus: replace(self, gpus=gpus)):
            ways.append(f"{found} GPUs (trainer.nnodes x trainer.n_gpus_per_node)")
        if self.micro is not None or self.log_prob:
            step = 1 if self.loss is None else self.n
            if found := working(range(step, self.rows + 1, step), self._with_micro):
                ways.append(f"micro-batches of {found} rows (ppo_ and log_prob_micro_batch_size_per_gpu)")
            if self.loss is None and replace(self, micro=None, log_prob=()).problem() is None:
                ways.append(f"{_ACTOR}.use_dynamic_bsz=true")
        return ways

    def _with_micro(self, rows: int) -> Layout:
        micro = None if self.micro is None else rows
        return replace(self, micro=micro, log_prob=tuple((key, rows) for key, _ in self.log_prob))

    def __str__(self) -> str:
        return f"{self.gpus} GPUs (trainer.nnodes x trainer.n_gpus_per_node)"


def read_layout(job: DictConfig) -> Layout | None:
    """The job's; None where it says no micro-batches or its engine is neither FSDP nor Megatron."""
    if OmegaConf.select(job, _ACTOR) is None:
        return None
    actor = job.actor_rollout_ref.actor
    keys: tuple[str, ...]
    if str(actor.strategy).startswith("fsdp"):
        keys, sizes = (_ULYSSES,), [fsdp_ulysses(job)]
    elif actor.strategy == "megatron":
        keys, sizes = _MEGATRON, [OmegaConf.select(job, key) for key in _MEGATRON]
    else:
        return None
    micro = None if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
    log_prob = [(key, OmegaConf.select(job, key)) for key in _log_prob_keys(job)]
    if (micro is None and not actor.use_dynamic_bsz) or None in dict(log_prob).values():
        return None
    loss = loss_mode(job)
    return Layout(
        gpus=job.trainer.nnodes * job.trainer.n_gpus_per_node,
        shared=math.prod(sizes),
        shared_keys=keys,
        prompts=job.data.train_batch_size // _updates_a_sync(job),
        whole_batch=job.data.train_batch_size,
        mini_batch=actor.ppo_mini_batch_size,
        n=job.actor_rollout_ref.rollout.n,
        micro=micro,
        log_prob=tuple(log_prob),
        loss=loss if loss in LOSSES else None,
    )


def layout_problem(job: DictConfig) -> str | None:
    """What is wrong with the job's layout and what would be right, by the settings' names; None where it is right."""
    layout = read_layout(job)
    if layout is None or (problem := layout.problem()) is None:
        return None
    ways = layout.ways_out() or ["another data.train_batch_size and ppo_mini_batch_size"]
    return f"{problem}. What would work: {'; or '.join(ways)}"


def check_layout(job: DictConfig) -> None:
    """Refuse a job with CW-GRPO whose batch the workers could not cut.

    Raises:
        ValueError: see :func:`layout_problem`.
    """
    if describe(job, job.algorithm.adv_estimator) is not None and (problem := layout_problem(job)):
        raise ValueError(problem)


def fsdp_ulysses(job: DictConfig) -> int:
    """GPUs that share a sequence under FSDP. verl takes the actor's own (deprecated) key where it is above 1."""
    old, new = (
        OmegaConf.select(job, key) or 1 for key in (_ULYSSES, f"{_ACTOR}.fsdp_config.ulysses_sequence_parallel_size")
    )
    return int(old if old > 1 else new)


def _log_prob_keys(job: DictConfig) -> list[str]:
    """The micro-batches of the passes for log-probs that the job makes and that are not dynamic."""
    ar = job.actor_rollout_ref
    reference = ar.actor.use_kl_loss or job.algorithm.use_kl_in_reward
    of_the_actor = not bypasses_old_log_probs(job)
    if reference and _reference_in_actor(job):  # with the actor's micro-batches
        reference, of_the_actor = False, True
    # verl demands that the actor's passes are all dynamic, or none.
    passes = [_ROLLOUT] if of_the_actor and not ar.actor.use_dynamic_bsz else []
    dynamic_reference = ar.ref.get("log_prob_use_dynamic_bsz", ar.actor.use_dynamic_bsz)
    passes += [_REF] if reference and not dynamic_reference else []
    return [f"{name}.log_prob_micro_batch_size_per_gpu" for name in passes]


def _reference_in_actor(job: DictConfig) -> bool:
    """verl's `ref_in_actor`: the actor without its LoRA adapter is the reference."""
    model = job.actor_rollout_ref.model
    rank = OmegaConf.select(model, "lora.rank") or OmegaConf.select(model, "lora_rank") or 0
    return rank > 0 or model.get("lora_adapter_path") is not None


def _updates_a_sync(job: DictConfig) -> int:
    mode = OmegaConf.select(job, "trainer.v1.trainer_mode")
    return OmegaConf.select(job, f"trainer.v1.{mode}.parameter_sync_step", default=1)


def _product(keys: tuple[str, ...]) -> str:
    return " x ".join([keys[0], *(key.rsplit(".", 1)[1] for key in keys[1:])])


def _either(values: list[int]) -> str:
    return ", ".join(map(str, values[:-1])) + (" or " if values[1:] else "") + str(values[-1]) if values else ""
