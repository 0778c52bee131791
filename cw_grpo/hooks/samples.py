# SPDX-License-Identifier: Apache-2.0
"""Per-token samples of a run, in parquet: `algorithm.cw_grpo.record`, with any policy loss.

The estimator must give a response one advantage (`gae` does not).

A file a recorded step, ``DIR/step-000010.parquet``, of whole groups drawn at random, as many as fit into
`record_tokens`:

    step, group, response, position, token_id, old_log_prob, advantage, covariance, weight, reward

``group`` is verl's uid, ``response`` the row of the batch, ``position`` the token's within its response, ``advantage``
before the weights, ``covariance`` and ``weight`` those of section 2.3 (arXiv 2605.11538) from the ``old_log_probs``,
whether or not the job applies them, ``reward`` the response's. Masked tokens have no row. The schema's metadata holds
under ``cw_grpo``, as JSON, what the job does with them (``applied``: estimator, loss or none), where the tokenizer is
(``model``), and the token ids of the groups' prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..files import new_file
from ..settings import ESTIMATOR, LOSSES, estimator_name, loss_mode, read_options
from ..weights import covariance_weights

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("group", pa.string()),
        ("response", pa.int32()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("old_log_prob", pa.float32()),
        ("advantage", pa.float32()),
        ("covariance", pa.float32()),
        ("weight", pa.float32()),
        ("reward", pa.float32()),
    ]
)
METADATA = b"cw_grpo"


def write_step(
    algorithm: Any,
    step: int,
    uids: Sequence[str],
    rows: Sequence[int],
    data: Mapping[str, torch.Tensor],
    groups_in_batch: int,
    prompts: Mapping[str, list[int]],
    sessions: Sequence[str] | None = None,
) -> Path:
    """Write one step's file, whole or not at all; at most `record_tokens` rows.

    Args:
        algorithm: the live `algorithm` node of the job.
        step: the trainer's.
        uids: R group ids.
        rows: R rows of the batch.
        data: (R, T) responses, response_mask, old_log_probs, rm_scores and the unweighted advantages.
        groups_in_batch: how many groups were drawn from.
        prompts: token ids by group.
        sessions: R ids of the responses of which the rows are parts; None means that each row is a response.
    """
    options = read_options(algorithm)
    job = algorithm._get_root()
    loss, estimator = loss_mode(job), estimator_name(algorithm.adv_estimator)
    mask = data["response_mask"] != 0
    advantages = data[unweighted_field(algorithm)]
    index = np.array(uids, dtype=object)
    result = covariance_weights(
        *(data["old_log_probs"], advantages, mask, index), response_index=sessions, log_prob_mean=options.log_prob_mean
    )
    row, position = (places[: options.record_tokens].numpy() for places in mask.cpu().nonzero(as_tuple=True))

    def at(values: torch.Tensor) -> np.ndarray:
        return values.detach().float().cpu().numpy()[row, position]

    columns = (
        np.full(len(row), step),
        index[row],
        np.array(rows)[row],
        position,
        data["responses"].cpu().numpy()[row, position],
        at(data["old_log_probs"]),
        at(advantages),
        at(result.covariance),
        at(result.weights),
        data["rm_scores"].float().sum(-1).cpu().numpy()[row],
    )
    about = {
        "estimator": estimator,
        "loss_mode": loss,
        "applied": "loss" if loss in LOSSES else "estimator" if estimator == ESTIMATOR else "none",
        "log_prob_mean": options.log_prob_mean,
        "model": job.actor_rollout_ref.model.get("tokenizer_path") or job.actor_rollout_ref.model.path,
        "groups_in_batch": groups_in_batch,
        "groups_recorded": len(set(index[row])),
        "prompts": {uid: prompts[uid] for uid in dict.fromkeys(index[row]) if uid in prompts},
    }
    table = pa.table(
        [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)],
        schema=SCHEMA.with_metadata({METADATA: json.dumps(about).encode()}),
    )
    assert options.record is not None
    out = Path(options.record) / f"step-{step:06d}.parquet"
    with new_file(out) as temporary:
        pq.write_table(table, temporary)
    return out


def read_about(file: Path) -> dict[str, Any]:
    """What a recorded step says of its job (see the top); empty where it says nothing."""
    return json.loads((pq.read_schema(file).metadata or {}).get(METADATA, b"{}"))


def unweighted_field(algorithm: Any) -> str:
    """The batch's field with the advantages before the weights: verl's `returns`, where the estimator weights them."""
    return "returns" if estimator_name(algorithm.adv_estimator) == ESTIMATOR else "advantages"
