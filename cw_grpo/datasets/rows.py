# SPDX-License-Identifier: Apache-2.0
"""Rows in verl's parquet schema, and the file that holds them.

A row has ``data_source``, ``prompt`` (a chat), ``ability``, ``reward_model`` (``style``, ``ground_truth``) and
``extra_info`` (``index``, ``split``, ``question``). A file is written whole or not at all; the same rows give the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("question", pa.string())])),
    ]
)


def make_row(
    data_source: str, prompt: list[dict[str, str]], ground_truth: str, *, index: int, split: str, question: str
) -> dict[str, Any]:
    """One row of verl's schema, for a mathematical question whose answer a rule can check."""
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": index, "split": split, "question": question},
    }


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
