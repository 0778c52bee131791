# SPDX-License-Identifier: Apache-2.0
"""Wording shared by errors and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_LISTED_ROWS = 5
"""A report lists this many rows and counts the rest."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, cut to ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."


def listed(items: Sequence[Any]) -> str:
    """The first :data:`MAX_LISTED_ROWS` items, and how many more there are."""
    more = len(items) - MAX_LISTED_ROWS
    return ", ".join(map(str, items[:MAX_LISTED_ROWS])) + (f" and {more} more" if more > 0 else "")
