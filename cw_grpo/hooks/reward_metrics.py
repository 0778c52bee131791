# SPDX-License-Identifier: Apache-2.0
"""What a reward function returns beside its score, in the log of every training step.

verl logs the score of a training batch but none of what a reward function returns beside it; only validation does that.
Any function that returns numbers has their means logged. Nothing here knows a particular reward.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def summarise(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over responses of the numbers that a reward function returns: ``reward/acc``, ``reward/format`` and so on.

    A key is logged if all of its values are finite numbers or bools. ``score`` is not: verl logs it.

    Args:
        infos: what the reward returned, for each response; a key may be absent or None.
    """
    metrics = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        values = [info[key] for info in infos if info.get(key) is not None]
        if key != "score" and values and all(map(_is_number, values)):
            metrics[f"reward/{key}"] = float(np.mean(np.array(values, dtype=float)))
    return metrics


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) and math.isfinite(value)


def add_v1(arguments: Mapping[str, Any], _: Any) -> None:
    """After `PPOTrainer._compute_metrics` of the V1 trainers, where a batch is keys into verl's TransferQueue.

    For jobs with a reward function of their own. Each response counts once, by its final output if an agent made
    several; padding rows do not count.
    """
    if not arguments["self"].config.reward.custom_reward_function.path:
        return
    batch = arguments["batch"]
    final: dict[str, tuple[int, str]] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        session, _, index = key.rpartition("_")
        if not tag.get("is_padding", False):
            final[session] = max(final.get(session, (-1, "")), (int(index) if index.isdigit() else 0, key))
    if not final:
        return

    import transfer_queue as tq

    data = tq.kv_batch_get(
        keys=[key for _, key in final.values()], partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    fields = data.pop("extra_fields").tolist()
    infos = [(f.get("reward_extra_info") or {}) if isinstance(f, dict) else {} for f in fields]
    arguments["metrics"].update(summarise(infos))


def add_v0(arguments: Mapping[str, Any], metrics: dict[str, Any]) -> None:
    """After `compute_data_metrics`, whose batch names the reward's keys in the trainers before V1.

    The V1 trainers hand it a batch without them, so that both observers may be in place at once.
    """
    batch = arguments["batch"]
    columns = {key: batch.non_tensor_batch[key] for key in batch.meta_info.get("reward_extra_keys", ())}
    metrics |= summarise([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
