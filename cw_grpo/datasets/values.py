"""The text of a cell: what can be a question or an answer, and why a cell cannot."""

from __future__ import annotations

import math
from typing import Any


class Unusable(Exception):
    """A value that cannot be a question or an answer; the message says why, the same for rows of one kind."""


def text_of(value: Any, what: str) -> str:
    """A cell as text without outer white space; a number in digits, 540.0 as 540; a list's entries joined by ``, ``.

    Raises:
        Unusable: nothing there (None, NaN, white space, an empty list), or a value that is none of these.
    """
    if isinstance(value, list):
        if not value:
            raise Unusable(f"no {what}")
        return ", ".join(text_of(entry, what) for entry in value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unusable(f"no {what}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes a column of integers with a gap one of floats
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        text = str(value)
    else:
        raise Unusable(f"{what} is neither text nor a number")
    if not text:
        raise Unusable(f"no {what}")
    if "\0" in text:
        raise Unusable(f"{what} with a NUL character")
    return text
