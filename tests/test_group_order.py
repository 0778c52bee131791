# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import LOSS, job

from cw_grpo.group_order import check_order, group_order, padded_rows


def rows_of(groups: int, n: int, seed: int, lost: int = 0, padding: int = 0) -> tuple[list[str], list[dict]]:
    """Keys and tags as V1's replay buffer gives them: in the order in which responses were finished."""
    rng = np.random.default_rng(seed)
    keys = [f"uid_{g}_{s}_0".replace("uid_", "uid-") for g in range(groups) for s in range(n)]
    keys = [keys[i] for i in rng.permutation(len(keys))][: len(keys) - lost]
    tags = [{"seq_len": int(rng.integers(10, 4000))} for _ in keys]
    keys += [f"pad0_{i}_0" for i in range(padding)]
    tags += [{"seq_len": 128, "is_padding": True} for _ in range(padding)]
    return keys, tags


def uids(keys: list[str], rows: list[int]) -> set[str]:
    return {keys[row].rsplit("_", 2)[0] for row in rows} - {"pad0"}


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 99), st.data())
def test_every_block_is_one_group_and_every_rank_has_whole_groups(per_rank, ranks, n, seed, data) -> None:
    lost = data.draw(st.integers(0, per_rank * ranks * n - 1))
    keys, tags = rows_of(per_rank * ranks, n, seed, lost, padding=lost)
    order = group_order(keys, tags, n, ranks)
    assert sorted(order) == list(range(len(keys)))
    blocks = [order[start : start + n] for start in range(0, len(order), n)]
    assert all(len(uids(keys, block)) <= 1 for block in blocks)
    of_groups = [uids(keys, block) for block in blocks if uids(keys, block)]
    assert len(of_groups) == len(set.union(*of_groups))


def test_work_is_balanced_over_the_ranks() -> None:
    keys, tags = rows_of(16, 4, seed=3)
    order = group_order(keys, tags, 4, 4)
    loads = [sum(tags[row]["seq_len"] for row in order[start : start + 16]) for start in range(0, 64, 16)]
    assert max(loads) < 1.1 * min(loads)


@pytest.mark.losses
def test_verls_metrics_of_the_balance_are_those_of_the_order_that_the_workers_get() -> None:
    # Not at the top: a verl without the losses may have no such trainer.
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    keys, tags = rows_of(6, 4, seed=5)
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    trainer = SimpleNamespace(
        config=job("algorithm.adv_estimator=cw_grpo", LOSS + "cw_grpo_live"),
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": [0, 1, 2]}),
        tokenizer=SimpleNamespace(eos_token_id=0),
        _get_required_batch_multiple=lambda ranks: ranks,
    )
    metrics: dict[str, float] = {}
    batch = PPOTrainer._balance_batch(trainer, batch, metrics)
    lengths = [tag["seq_len"] for tag in batch.tags]
    loads = [sum(lengths[first : first + 8]) for first in (0, 8, 16)]
    assert (metrics["global_seqlen/balanced_min"], metrics["global_seqlen/balanced_max"]) == (min(loads), max(loads))
    assert metrics["global_seqlen/mean"] == sum(loads) / 3
    check_order([key.rsplit("_", 2)[0] for key in batch.keys], 4, "cw_grpo_live")


def test_sessions_with_several_outputs_are_refused() -> None:
    keys, tags = rows_of(2, 2, seed=0)
    with pytest.raises(ValueError, match="several outputs.*adv_estimator=cw_grpo"):
        group_order([*keys, "uid-0_1_1", "uid-0_1_2"], tags + tags[:2], 2, 1)
    # Of two sessions one gave nothing, and the other two outputs: as many rows as responses.
    with pytest.raises(ValueError, match="several outputs.*adv_estimator=cw_grpo"):
        group_order(["uid-0_0_0", "uid-0_0_1"], tags[:2], 2, 1)


def test_groups_that_do_not_fit_the_ranks_are_refused() -> None:
    keys, tags = rows_of(3, 2, seed=0)
    with pytest.raises(ValueError, match=r"3 groups .* 2 data-parallel ranks.*ppo_mini_batch_size"):
        group_order(keys, tags, 2, 2)


def test_lost_responses_without_padding_are_refused() -> None:
    keys, tags = rows_of(3, 4, seed=0, lost=1)
    with pytest.raises(ValueError, match="3 of rollout.n=4"):
        group_order(keys, tags, 4, 1)


@pytest.mark.parametrize(("lost", "padding", "lacking"), [(0, 0, 0), (3, 0, 3), (3, 1, 2), (3, 3, 0), (2, 6, 0)])
def test_rows_that_are_missing(lost: int, padding: int, lacking: int) -> None:
    keys, tags = rows_of(5, 4, seed=1, lost=lost, padding=padding)
    assert padded_rows(keys, tags, 4, 4) == len(keys) + lacking


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)]))
def test_groups_that_lost_any_responses_still_make_whole_mini_batches(lost: list[int], cut: tuple[int, int]) -> None:
    n, (mini_batch, ranks) = 4, cut
    keys = [f"uid-{g}_{s}_0" for g, missing in enumerate(lost) for s in range(n - missing)]
    if not keys:
        return
    tags = [{"seq_len": 10 + len(key)} for key in keys]
    multiple = mini_batch * n
    for rows in (math.ceil(len(keys) / multiple) * multiple, padded_rows(keys, tags, n, multiple)):  # verl's, then ours
        tags += [{"seq_len": 128, "is_padding": True} for _ in range(rows - len(keys))]
        keys += [f"pad0_{i}_0" for i in range(len(keys), rows)]
    assert len(keys) % multiple == 0
    order = group_order(keys, tags, n, ranks)
    check_order([keys[row].rsplit("_", 2)[0] for row in order], n, "cw_grpo_live")


def test_a_lost_group_among_others_that_lost_some() -> None:
    # Four groups of four that lost 2, 1, 1 and 4 responses, mini-batches of two groups: verl pads to 8 rows.
    keys = [f"uid-{g}_{s}_0" for g, rows in enumerate((2, 3, 3, 0)) for s in range(rows)]
    assert padded_rows(keys, [{}] * len(keys), 4, 8) == 16


def test_what_group_order_gives_is_in_order() -> None:
    keys, tags = rows_of(6, 4, seed=2, lost=3, padding=3)
    uid = [key.rsplit("_", 2)[0] for key in keys]
    with pytest.raises(ValueError, match="blocks of rollout.n=4"):
        check_order(uid, 4, "cw_grpo_live")
    check_order([uid[row] for row in group_order(keys, tags, 4, 2)], 4, "cw_grpo_live")


@pytest.mark.parametrize("uids", [["a", "a", "b"], ["a", "b", "b", "a"], ["a", "pad0", "pad0", "a"]])
def test_rows_that_are_not_blocks_of_groups_are_refused(uids: list[str]) -> None:
    with pytest.raises(ValueError, match="groups in order"):
        check_order(uids, 2, "cw_grpo_live")
