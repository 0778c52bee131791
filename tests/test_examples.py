# SPDX-License-Identifier: Apache-2.0
"""Every example runs, and says what its text promises."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_weights(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "weights.py"))
    numbers = re.findall(r"\d+\.\d*", capsys.readouterr().out)
    printed = np.array(numbers, dtype=float).reshape(found["mask"].shape)
    assert printed.sum() == pytest.approx(found["mask"].sum().item(), abs=0.05)  # the mean over the group is 1
    assert printed.min() == 0 and printed[0, 2] < 0.05  # masked; and the token that was hardly expected
