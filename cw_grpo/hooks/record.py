# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch are recorded: whole groups drawn at random, for `algorithm.cw_grpo.record`.

:mod:`cw_grpo.hooks.samples` writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..groups import is_padding
from ..settings import Options, estimator_name, job_config, read_options

_step: int | None = None
"""The step of verl's V0 trainers in this process. Batches of several steps may be joined, so it is not kept in them."""


def is_due(options: Options, step: int) -> bool:
    """Whether ``step`` is to be recorded: the first, and every `record_every`-th."""
    return options.record is not None and (step == 1 or step % options.record_every == 0)


def note_step(arguments: Mapping[str, Any], _: Any) -> None:
    """After `RayPPOTrainer._get_gen_batch` (V0), the first call of a step."""
    global _step
    _step = arguments["self"].global_steps


def record_v1(arguments: Mapping[str, Any], _: Any) -> None:
    """After `PPOTrainer._compute_metrics` (V1), the end of a step, where a batch is keys into verl's TransferQueue."""
    algorithm, batch, step = arguments["self"].config.algorithm, arguments["batch"], arguments["global_steps"]
    options = read_options(algorithm)
    if not is_due(options, step):
        return

    import transfer_queue as tq

    from .samples import unweighted_field, write_step

    uids = {
        row: key.rsplit("_", 2)[0]  # {uid}_{session}_{output}
        for row, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True))
        if not tag.get("is_padding", False)
    }
    rows, groups = _sample(uids, {row: batch.tags[row]["response_len"] for row in uids}, options, step)
    if not rows:
        return
    fields = ["prompts", "responses", "response_mask", "old_log_probs", "rm_scores", unweighted_field(algorithm)]
    data = tq.kv_batch_get(
        keys=[batch.keys[row] for row in rows], partition_id=batch.partition_id, select_fields=fields
    )
    first = {uid: place for place, uid in reversed(list(enumerate(rows.values())))}
    prompts = {uid: data["prompts"][place].tolist() for uid, place in first.items()}
    sessions = [batch.keys[row].rpartition("_")[0] for row in rows]
    padded = data.to_padded_tensor()
    write_step(algorithm, step, list(rows.values()), list(rows), padded, groups, prompts, sessions)


def record_v0(arguments: Mapping[str, Any], data: Any) -> None:
    """After `compute_advantage` of verl's trainers before V1; V1's batch has no token ids there.

    Raises:
        ValueError: the trainer does not say which step it is at.
    """
    algorithm, estimator = arguments.get("config"), estimator_name(arguments["adv_estimator"])
    job = job_config(algorithm)
    # verl may compute grpo's advantages within those of cw_grpo.
    if job is None or estimator != estimator_name(job.algorithm.adv_estimator) or "responses" not in data.batch:
        return
    options = read_options(algorithm)
    if options.record is None:
        return
    if _step is None:
        raise ValueError(
            "algorithm.cw_grpo.record: this trainer does not call RayPPOTrainer._get_gen_batch, which tells the step"
        )
    if not is_due(options, _step):
        return

    from .samples import unweighted_field, write_step

    every = {row: str(uid) for row, uid in enumerate(data.non_tensor_batch["uid"])}
    tokens = (data.batch["response_mask"] != 0).sum(-1).tolist()
    real = {row: uid for row, uid in every.items() if not is_padding(uid)}
    uids, groups = _sample(real, tokens, options, _step)
    rows = list(uids)
    names = ["responses", "response_mask", "old_log_probs", "token_level_scores", unweighted_field(algorithm)]
    part = {name: data.batch[name][rows] for name in names}
    part["rm_scores"] = part.pop("token_level_scores")
    prompts = {}
    if "prompts" in data.batch and "attention_mask" in data.batch:
        width = data.batch["prompts"].shape[1]
        for row in reversed(rows):  # the first response's stays
            prompt = data.batch["prompts"][row]
            prompts[uids[row]] = prompt[data.batch["attention_mask"][row, :width] != 0].tolist()
    write_step(algorithm, _step, list(uids.values()), rows, part, groups, prompts)


def _sample(
    uids: Mapping[int, str], tokens: Mapping[int, int] | Sequence[int], options: Options, step: int
) -> tuple[dict[int, str], int]:
    """The rows of the groups that are drawn, with their group ids, and how many groups were drawn from."""
    lengths: Counter[str] = Counter()
    for row, uid in uids.items():
        lengths[uid] += tokens[row]
    chosen = set(choose_groups(lengths, options.record_tokens, step))
    return {row: uid for row, uid in uids.items() if uid in chosen}, len(lengths)


def choose_groups(lengths: Mapping[str, int], budget: int, step: int) -> list[str]:
    """Groups drawn at random until their tokens reach ``budget``; the first one in any case.

    Args:
        lengths: tokens by group.
        budget: tokens.
        step: seeds the draw.
    """
    order = sorted(lengths)
    np.random.default_rng(step).shuffle(order)
    ends = np.cumsum([lengths[uid] for uid in order])
    return order[: max(1, int((ends <= budget).sum()))]
