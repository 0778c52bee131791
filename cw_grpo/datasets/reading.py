# SPDX-License-Identifier: Apache-2.0
"""Rows of a local file: parquet, json, jsonl or csv. Numbers stay as they are written."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cw_grpo.datasets.messages import one_line
from cw_grpo.datasets.values import Unreadable

Rows = list[dict[str, Any]]

NOT_SPACE = re.compile(r"[^ \t\n\r]")
"""By JSON's definition of white space."""


def read_file(path: Path) -> Rows:
    """The rows of a file.

    A csv's cells are text; so are the numbers of a json file, digit for digit. Cells whose value is not certain are
    :class:`~cw_grpo.datasets.values.Unreadable`.

    Raises:
        ValueError: not such a file, or not a table; names it.
        OSError: it is missing or cannot be read.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        return READERS[path.suffix](path)
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error


# --- parquet ------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> Rows:
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            table = file.read()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a parquet table: {one_line(error)}") from error
    _reject_twins(path, table.column_names)
    cells = {}
    for name in table.column_names:
        try:
            cells[name] = table[name].to_pylist()
        except (pa.ArrowException, ValueError) as error:  # text that is not UTF-8, times out of Python's range
            raise ValueError(f"{path}: column {name!r} cannot be read: {one_line(error)}") from error
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return mark_short_floats(rows, table.schema)


def mark_short_floats(rows: Rows, schema: pa.Schema) -> Rows:
    """The rows with ``Unreadable`` for cells of float16 and float32, which hold 3 and 6 digits."""
    for field in schema:
        kind = field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if pa.types.is_float16(kind) or pa.types.is_float32(kind):
            lost = Unreadable(f"stored as {field.type}, which does not keep its digits: store it as text")
            for row in rows:
                row[field.name] = None if row[field.name] is None else lost
    return rows


# --- json ---------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> Rows:
    """A list of objects, objects one after the other, or one object of lists of equal length (columns)."""
    data = path.read_bytes()
    try:
        values = _json_values(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not Unicode text: {one_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not a json table: lists or objects too deep in one another") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a json table: {one_line(error)}") from error
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    elif len(values) == 1 and isinstance(values[0], dict) and values[0]:
        columns = list(values[0].values())
        if all(isinstance(column, list) for column in columns):
            lengths = {name: len(column) for name, column in values[0].items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"{path}: its columns have different lengths: {lengths}")
            return [dict(zip(lengths, row, strict=True)) for row in zip(*columns, strict=True)]
    if bad := [number for number, row in enumerate(values) if not isinstance(row, dict)]:
        raise ValueError(f"{path} is not a json table: row {bad[0]} is not an object with columns")
    return values


def _json_values(text: str) -> list[Any]:
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, object_pairs_hook=_json_object)
    values, position = [], 0
    while start := NOT_SPACE.search(text, position):
        value, position = decoder.raw_decode(text, start.start())
        values.append(value)
    return values


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twins = {name for name, number in Counter(name for name, _ in pairs).items() if number > 1}
    return {name: Unreadable("given twice in one row") if name in twins else value for name, value in pairs}


# --- csv ----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Rows:
    import pandas

    try:
        # The header is read as a row: pandas would rename a second column of the same name.
        table = pandas.read_csv(path, header=None, dtype=str, na_filter=False, index_col=False, encoding="utf-8-sig")
    except (ValueError, pandas.errors.ParserError) as error:
        raise ValueError(
            f"{path} is not a csv table with a header: {one_line(error)} (text with commas needs quotes)"
        ) from error
    header, *rows = table.values.tolist()
    _reject_twins(path, header)
    return [dict(zip(header, row, strict=True)) for row in rows]


def _reject_twins(path: Path, names: Sequence[str]) -> None:
    if twins := [name for name, number in Counter(names).items() if number > 1]:
        raise ValueError(f"{path}: two columns have the name {twins[0]!r}")


READERS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
}
FORMATS = tuple(READERS)
