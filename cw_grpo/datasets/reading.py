"""Rows of a local file: parquet, json, jsonl or csv."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from cw_grpo.datasets.messages import one_line

FORMATS = (".parquet", ".json", ".jsonl", ".csv")


def read_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet, json, jsonl or csv file; a csv's cells stay the text that they are.

    Raises:
        ValueError: not such a file, or not a table; names it.
        FileNotFoundError: there is none.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix == ".csv":
        import pandas

        try:
            with warnings.catch_warnings():
                # Rows longer than the header: pandas would take their first cells as an index.
                warnings.simplefilter("error", pandas.errors.ParserWarning)
                return pandas.read_csv(path, dtype=str, na_filter=False, index_col=False).to_dict("records")
        except pandas.errors.ParserWarning as error:
            raise ValueError(
                f"{path}: its rows have more cells than its header: put quotes around text with commas"
            ) from error
        except (ValueError, pandas.errors.ParserError) as error:
            raise ValueError(f"{path} is not a csv table with a header: {one_line(error)}") from error

    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    # datasets copies what it reads into a cache: its own folder, so that an edited file is never answered from there.
    with tempfile.TemporaryDirectory() as cache, _no_bars(datasets):
        try:
            return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache).to_list()
        except Exception as error:  # of pyarrow, datasets, the json parser, or StopIteration for an empty file
            raise ValueError(f"{path} is not a {kind} table: {one_line(error.__cause__ or error)}") from error


@contextlib.contextmanager
def _no_bars(datasets: ModuleType) -> Iterator[None]:
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
