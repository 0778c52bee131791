# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from cw_grpo.intervals import average_interval, bootstrap_interval, t_interval


def test_the_bootstrap_agrees_with_the_normal_approximation_of_a_proportion() -> None:
    values = [1.0] * 300 + [0.0] * 200
    half = 1.96 * math.sqrt(0.6 * 0.4 / 500)
    assert bootstrap_interval(values) == pytest.approx((0.6 - half, 0.6 + half), abs=0.004)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_students_t_on_three_seeds() -> None:
    # 4.303 is the 97.5% point of t with two degrees of freedom, from any table.
    half = 4.3027 * 1.0 / math.sqrt(3)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-3)


@pytest.mark.parametrize("interval", [bootstrap_interval, t_interval])
def test_equal_values_have_no_width_and_one_value_no_interval(interval) -> None:
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert np.isnan(interval([0.5])).all()


def test_the_average_of_benchmarks_counts_each_the_same() -> None:
    large, small = [1.0] * 300 + [0.0] * 200, [1.0] * 20 + [0.0] * 30
    half = 1.96 * math.sqrt(0.6 * 0.4 / 500 + 0.4 * 0.6 / 50) / 2
    assert average_interval([large, small]) == pytest.approx((0.5 - half, 0.5 + half), abs=0.006)
    assert average_interval([large]) == bootstrap_interval(large)
    assert average_interval([[1.0, 1.0], [0.5, 0.5]]) == (0.75, 0.75)
    assert np.isnan(average_interval([large, [1.0]])).all()
