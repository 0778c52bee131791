# SPDX-License-Identifier: Apache-2.0
"""Cells as text, and the digits of numbers."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cw_grpo.datasets.values import Unreadable, Unusable, answer_of, question_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (540, "540"),
        (540.0, "540"),
        (0.5, "0.5"),
        (0.3, "0.3"),
        (1e-7, "0.0000001"),
        (-0.0, "0"),
        (10**30, str(10**30)),
        (Decimal("0.30"), "0.30"),
        (Decimal("1E+2"), "100"),
        (Decimal("12345678901234567890.125"), "12345678901234567890.125"),
        ("540.0", "540.0"),
        ("  \\frac{1}{2}\n", "\\frac{1}{2}"),
        ("\t \n\r\x0b5\x0c\t", "5"),
        ("\u00a0 x", "x"),
        ("\x0crac12", "\x0crac12"),
        (" \theta ", "\theta"),
        ("None", "None"),
        (["$2$"], "$2$"),
        (["$2$", 3], "$2$, 3"),
        ("π\u202e", "π\u202e"),
    ],
)
def test_a_value_as_text(value, text: str) -> None:
    assert answer_of(value) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no answer"),
        (float("nan"), "no answer"),
        (Decimal("nan"), "no answer"),
        ("", "no answer"),
        (" \n\t", "no answer"),
        ([], "no answer"),
        (["1", None], "no answer"),
        (True, "the answer is neither text nor a number"),
        (float("inf"), "neither text nor a number"),
        (Decimal("-inf"), "neither text nor a number"),
        ({"value": "1"}, "neither text nor a number"),
        (b"1", "neither text nor a number"),
        ([["1", "2"], ["3", "4"]], "neither text nor a number"),
        ("1\x002", "NUL"),
        ("\ud800", "surrogate"),
        (Unreadable("given twice in one row"), "the answer is given twice in one row"),
    ],
)
def test_a_value_that_is_no_text(value, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        answer_of(value)


def test_a_question_is_not_a_list() -> None:
    with pytest.raises(Unusable, match="the question is neither text nor a number"):
        question_of(["Why?", "How?"])


@pytest.mark.parametrize("value", [0.1 + 0.2, 4.5e33, 2.0**53, 1e15, -1e15, 1 / 3, float(12345678901234567890)])
def test_a_float_that_may_be_rounded(value: float) -> None:
    with pytest.raises(Unusable, match="a float of more than 15 digits and may be rounded: store it as text"):
        answer_of(value)


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(0, 30))
def test_a_number_of_fifteen_digits_survives_a_float(digits: int, places: int) -> None:
    number = Decimal(digits).scaleb(-places)
    assert Decimal(answer_of(float(number))) == number


@given(st.floats())
def test_what_a_float_gives_is_its_value_in_plain_digits(value: float) -> None:
    try:
        text = answer_of(value)
    except Unusable:
        assert math.isnan(value) or math.isinf(value) or abs(value) >= 1e15 or len(repr(abs(value))) > 15
        return
    assert float(text) == value and "e" not in text.lower()
