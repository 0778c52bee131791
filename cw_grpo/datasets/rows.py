# SPDX-License-Identifier: Apache-2.0
"""Rows in verl's parquet schema, and the file that holds them.

A row has ``data_source``, ``prompt`` (a chat), ``ability``, ``reward_model`` (``style``, ``ground_truth``) and
``extra_info`` (``index``, ``split``, ``question``, ``values``: in JSON, what a prompt may use beside the question). A
file is written whole or not at all; the same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cw_grpo.files import new_file

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [("index", pa.int64()), ("split", pa.string()), ("question", pa.string()), ("values", pa.string())]
            ),
        ),
    ]
)


def make_row(
    data_source: str,
    prompt: list[dict[str, str]],
    ground_truth: str,
    *,
    index: int,
    split: str,
    question: str,
    values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One row of verl's schema, for a mathematical question whose answer a rule can check."""
    more = json.dumps(values or {}, ensure_ascii=False, sort_keys=True, default=str)
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": index, "split": split, "question": question, "values": more},
    }


def prompt_values(extra_info: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt may use, from a row's ``extra_info``; also of files that other programs wrote."""
    try:
        more = json.loads(extra_info.get("values") or "{}")
    except (TypeError, ValueError):
        more = {}
    return (more if isinstance(more, dict) else {}) | {k: v for k, v in extra_info.items() if k != "values"}


def write_rows(rows: Iterable[dict[str, Any]], out: Path) -> int:
    """Write rows to a parquet file, whole or not at all.

    Returns:
        the number of rows.

    Raises:
        OSError: ``out`` cannot be written.
    """
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    with new_file(out) as temporary:
        pq.write_table(table, temporary)
    return len(table)
