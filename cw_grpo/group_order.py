# SPDX-License-Identifier: Apache-2.0
"""Whole groups for the policy losses: the order of rows that verl's V1 trainer hands to its workers."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .groups import is_padding
from .settings import ESTIMATOR, LOSSES, job_config, loss_mode

_WORKAROUND = f"Or set algorithm.adv_estimator={ESTIMATOR} with loss_mode=vanilla, which works with any batch."


def check_order(uids: Sequence[str], rollout_n: int, loss: str) -> None:
    """Reject a batch whose rows are not blocks of ``rollout_n`` responses to one prompt each.

    Args:
        uids: the rows' group ids in the order in which the workers get them; verl's padding rows (`pad...`) fit
            anywhere.
        rollout_n: responses of a group.
        loss: the policy loss that needs them so, for the message.

    Raises:
        ValueError: some are not; the message names the settings.
    """
    blocks = [
        {uid for uid in uids[start : start + rollout_n] if not is_padding(uid)}
        for start in range(0, len(uids), rollout_n)
    ]
    real = [uid for block in blocks for uid in block]
    if len(uids) % rollout_n or len(real) != len(set(real)) or any(len(block) > 1 for block in blocks):
        raise ValueError(
            f"policy loss {loss} needs groups in order, blocks of rollout.n={rollout_n} rows of one prompt each; this "
            f"batch of {len(uids)} rows is not. In verl's V0 trainers set trainer.balance_batch=False. {_WORKAROUND}"
        )


def check_batch_order(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's computation of advantages: :func:`check_order` where the job's policy loss needs whole groups."""
    arguments = inspect.signature(target).bind(*args, **kwargs).arguments
    job = job_config(arguments.get("config"))
    if job is not None and (loss := loss_mode(job)) in LOSSES:
        check_order(arguments["data"].non_tensor_batch["uid"], job.actor_rollout_ref.rollout.n, loss)
    return target(*args, **kwargs)


def keep_groups_together(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around `PPOTrainer._balance_batch` (V1): whole groups are balanced over the ranks, if the policy loss needs them.

    verl balances rows one by one, whatever `trainer.balance_batch` says, and pads to whole mini-batches only.
    """
    # Not at the top: this module is loaded with the plugin, before verl's modules.
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    call = inspect.signature(target).bind(*args, **kwargs)
    call.apply_defaults()
    trainer, metrics = call.arguments["self"], call.arguments.get("metrics")
    batch = target(*args, **kwargs)  # a `KVBatchMeta`
    if loss_mode(trainer.config) in LOSSES:
        n = trainer.config.actor_rollout_ref.rollout.n
        ranks = max(trainer.actor_rollout_wg._dispatch_info["actor"]) + 1
        # verl's own multiple: whole mini-batches on every rank.
        rows = padded_rows(batch.keys, batch.tags, n, math.lcm(n, trainer._get_required_batch_multiple(ranks)))
        batch = upsample_batch_to_divisible_size(batch, rows, trainer.tokenizer.eos_token_id)
        batch.reorder(group_order(batch.keys, batch.tags, n, ranks))
        if metrics is not None:
            metrics.update(balance_metrics(batch.tags, ranks, call.arguments.get("logging_prefix", "global_seqlen")))
    return batch


def balance_metrics(tags: Sequence[Mapping[str, Any]], ranks: int, prefix: str) -> dict[str, float]:
    """verl's metrics of how the tokens are shared by the ranks, which it has logged for its own order and padding."""
    from verl.utils.seqlen_balancing import log_seqlen_unbalance

    lengths = [int(tag["seq_len"]) for tag in tags]
    shares = torch.arange(len(lengths)).view(ranks, -1).tolist()
    metrics = log_seqlen_unbalance(lengths, shares, prefix)
    return {f"{prefix}/{key}": metrics[f"{prefix}/{key}"] for key in ("balanced_min", "balanced_max", "mean")}


def padded_rows(keys: list[str], tags: list[dict[str, Any]], rollout_n: int, multiple: int) -> int:
    """Rows of the batch once every group that lost responses is filled up, rounded up to ``multiple`` rows."""
    real = Counter(
        key.rsplit("_", 2)[0] for key, tag in zip(keys, tags, strict=True) if not tag.get("is_padding", False)
    )
    rows = max(len(keys), sum(max(rollout_n, rows) for rows in real.values()))
    return math.ceil(rows / multiple) * multiple


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
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

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
        # Sessions that gave nothing may leave room for several outputs of another: each would count as a response.
        if missing < 0 or len({keys[row].rpartition("_")[0] for row in rows}) < len(rows):
            raise ValueError(
                f"group {uid} has {len(rows)} rows for rollout.n={rollout_n}, some of them several outputs of one "
                f"agent session: a policy loss gets no session ids and can't tell them apart. {_WORKAROUND}"
            )
        if missing > len(padding):
            raise ValueError(
                f"group {uid} has {len(rows)} of rollout.n={rollout_n} responses and there are too few padding rows to "
                f"fill it up. {_WORKAROUND}"
            )
        blocks.append(rows + [padding.pop() for _ in range(missing)])
    if len(padding) % rollout_n:
        raise ValueError(f"{len(padding)} padding rows are not whole groups of rollout.n={rollout_n}. {_WORKAROUND}")
    blocks.extend(padding[start : start + rollout_n] for start in range(0, len(padding), rollout_n))
    if len(blocks) % ranks:
        raise ValueError(
            f"{len(blocks)} groups can't be shared by {ranks} data-parallel ranks without cutting one: make "
            f"data.train_batch_size and actor_rollout_ref.actor.ppo_mini_batch_size multiples of {ranks}. {_WORKAROUND}"
        )
    workload = calculate_workload(torch.tensor([tag["seq_len"] for tag in tags], dtype=torch.int64))
    shares = get_seqlen_balanced_partitions(
        [int(workload[block].sum()) for block in blocks], k_partitions=ranks, equal_size=True
    )
    return [row for share in shares for block in share for row in blocks[block]]
