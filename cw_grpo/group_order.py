"""Whole groups for the policy losses: the order of rows that verl's V1 trainer hands to its workers."""

from __future__ import annotations

from typing import Any

import torch
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from cw_grpo.config import ESTIMATOR, LOSSES, loss_mode


def order_groups(trainer: Any, batch: Any) -> Any:
    """Reorder the batch (a `KVBatchMeta`) that V1's `PPOTrainer` balanced by whole groups, if the loss needs them.

    verl's V1 trainer balances rows over the data-parallel ranks one by one, whatever `trainer.balance_batch` says.
    """
    if loss_mode(trainer.config) in LOSSES:
        ranks = max(trainer.actor_rollout_wg._dispatch_info["actor"]) + 1
        batch.reorder(group_order(batch.keys, batch.tags, trainer.config.actor_rollout_ref.rollout.n, ranks))
    return batch


def group_order(keys: list[str], tags: list[dict[str, Any]], rollout_n: int, ranks: int) -> list[int]:
    """The rows in an order in which every ``rollout_n`` rows are one group and each rank's share holds whole groups.

    Groups are balanced over the ranks by verl's own workload estimate. A group that lost responses is filled up with
    the padding rows that verl added for them.

    Args:
        keys: verl's row keys, ``{uid}_{session}_{output}``.
        tags: verl's row tags with ``seq_len``, and ``is_padding`` on padding rows.
        rollout_n: responses of a group.
        ranks: data-parallel ranks; the batch is cut into as many equal parts, in order.

    Raises:
        ValueError: the rows can't be ordered so; the message says why and what to set.
    """
    way_out = f"Set algorithm.adv_estimator={ESTIMATOR} with loss_mode=vanilla, which works with any batch."
    groups: dict[str, list[int]] = {}
    padding: list[int] = []
    for row in sorted(range(len(keys)), key=lambda row: keys[row]):
        if tags[row].get("is_padding", False):
            padding.append(row)
        else:
            groups.setdefault(keys[row].rsplit("_", 2)[0], []).append(row)

    blocks: list[list[int]] = []
    for uid, rows in groups.items():
        missing = rollout_n - len(rows)
        if missing < 0:
            raise ValueError(
                f"group {uid} has {len(rows)} rows, more than rollout.n={rollout_n} (agent sessions with several "
                f"outputs): a policy loss gets no group ids and can't tell them apart. {way_out}"
            )
        if missing > len(padding):
            raise ValueError(
                f"group {uid} has {len(rows)} of rollout.n={rollout_n} responses and verl added too few padding rows "
                f"to fill it up. {way_out}"
            )
        blocks.append(rows + [padding.pop() for _ in range(missing)])
    if len(padding) % rollout_n:
        raise ValueError(f"{len(padding)} padding rows are not whole groups of rollout.n={rollout_n}. {way_out}")
    blocks.extend(padding[start : start + rollout_n] for start in range(0, len(padding), rollout_n))
    if len(blocks) % ranks:
        raise ValueError(
            f"{len(blocks)} groups can't be shared by {ranks} data-parallel ranks without cutting one: make "
            f"data.train_batch_size and actor_rollout_ref.actor.ppo_mini_batch_size multiples of {ranks}. {way_out}"
        )
    workload = calculate_workload(torch.tensor([tag["seq_len"] for tag in tags], dtype=torch.int64))
    shares = get_seqlen_balanced_partitions(
        [int(workload[block].sum()) for block in blocks], k_partitions=ranks, equal_size=True
    )
    return [row for share in shares for block in share for row in blocks[block]]
