"""Cells as text."""

from __future__ import annotations

import pytest

from cw_grpo.datasets.values import Unusable, text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (540, "540"),
        (540.0, "540"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (10**30, str(10**30)),
        ("540.0", "540.0"),
        ("  \\frac{1}{2}\n", "\\frac{1}{2}"),
        ("None", "None"),
        (["$2$"], "$2$"),
        (["$2$", 3], "$2$, 3"),
        ("π\u202e", "π\u202e"),
    ],
)
def test_a_value_as_text(value, text: str) -> None:
    assert text_of(value, "answer") == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no answer"),
        (float("nan"), "no answer"),
        ("", "no answer"),
        (" \n\t", "no answer"),
        ([], "no answer"),
        (["1", None], "no answer"),
        (True, "neither text nor a number"),
        (float("inf"), "neither text nor a number"),
        ({"value": "1"}, "neither text nor a number"),
        (b"1", "neither text nor a number"),
        ("1\x002", "NUL"),
    ],
)
def test_a_value_that_is_no_text(value, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        text_of(value, "answer")
