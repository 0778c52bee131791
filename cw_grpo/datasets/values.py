# SPDX-License-Identifier: Apache-2.0
"""The text of a cell: what can be a question or an answer, and why a cell cannot."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

LEADING_SPACE = re.compile(r"\A(?:[^\S\t\f\v\r]|[\t\f\v\r](?![A-Za-z]))*")
"""Not what JSON makes of ``\\t`` in ``"\\text"`` or of ``\\f`` in ``"\\frac"``: that is to be reported."""


class Unusable(Exception):
    """A value that cannot be a question or an answer; the message says why, the same for rows of one kind."""


@dataclass(frozen=True)
class Unreadable:
    """A cell whose value the file does not give; ``reason`` continues "the answer is ..."."""

    reason: str


def question_of(value: Any) -> str:
    """The text of a cell with a question, as :func:`text_of`."""
    return text_of(value, "question")


def answer_of(value: Any) -> str:
    """The text of a cell with an answer, as :func:`text_of`; the entries of a list are joined by ``, ``."""
    if isinstance(value, list):
        return ", ".join(text_of(entry, "answer") for entry in value or [None])
    return text_of(value, "answer")


def text_of(value: Any, what: str) -> str:
    """A cell as text without white space around it; a number in plain digits, the float 540.0 as 540.

    A float64 holds every number of up to 15 digits exactly enough to write it again. One of more digits may be
    another number than the one that was stored, and is rejected; so is a whole number of 10^15 or more.

    Args:
        value: of any type.
        what: ``question`` or ``answer``, for the message.

    Raises:
        Unusable: nothing there (None, NaN, white space), a float of more than 15 digits, or neither text nor a number.
    """
    if isinstance(value, Unreadable):
        raise Unusable(f"the {what} is {value.reason}")
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        raise Unusable(f"no {what}")
    if isinstance(value, str):
        text = LEADING_SPACE.sub("", value.rstrip())
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif isinstance(value, Decimal) and value.is_finite():
        text = format(value, "f")
    elif isinstance(value, float) and math.isfinite(value):
        text = _digits(value, what)
    else:
        raise Unusable(f"the {what} is neither text nor a number")
    if not text:
        raise Unusable(f"no {what}")
    if "\0" in text:
        raise Unusable(f"the {what} has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable(f"the {what} has half of a surrogate pair, which is not Unicode text") from None
    return text


def _digits(value: float, what: str) -> str:
    exact = Decimal(repr(value)).normalize()
    if len(exact.as_tuple().digits) > sys.float_info.dig or exact.adjusted() >= sys.float_info.dig:
        raise Unusable(f"the {what} is stored as a float of more than 15 digits and may be rounded: store it as text")
    return str(int(value)) if value.is_integer() else format(exact, "f")
