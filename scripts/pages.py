# SPDX-License-Identifier: Apache-2.0
"""The tables in docs/ that scripts write, between two markers that name what a table is of."""

from __future__ import annotations

from pathlib import Path


def with_table(page: str, of: str, table: str) -> str:
    """``page`` with its table ``of`` something written anew."""
    start, end = (f"<!-- table of {of}: {edge} -->" for edge in ("start", "end"))
    before, rest = page.split(start)
    return f"{before}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def write_table(page: Path, of: str, table: str) -> None:
    """Write the table into the page."""
    page.write_text(with_table(page.read_text(encoding="utf-8"), of, table), encoding="utf-8")
