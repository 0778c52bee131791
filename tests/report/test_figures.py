# SPDX-License-Identifier: Apache-2.0
"""Colours and sizes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cw_grpo.report.figures import COLOURS, colours_of


def lab(colour: str) -> np.ndarray:
    """CIE L*a*b* of a colour (IEC 61966-2-1, D65)."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("methods", [list(COLOURS), ["grpo", "mine", "yours", "cw_grpo", "theirs"]])
def test_no_two_methods_have_colours_that_are_hard_to_tell_apart(methods: list[str]) -> None:
    colours = colours_of(methods)
    for a, b in combinations(methods, 2):
        assert np.linalg.norm(lab(colours[a]) - lab(colours[b])) > 50, (a, b)


def test_every_picture_is_a_panel_that_a_phone_shows(full: Path) -> None:
    """A line of text in a picture of 768 pixels, shown 358 wide, is 11 pixels high."""
    from matplotlib import image

    for file in full.parent.glob("*.png"):
        height, width, _ = image.imread(file).shape
        assert width == pytest.approx(768, abs=1) and height < width, file
