# SPDX-License-Identifier: Apache-2.0
"""What hypothesis draws."""

from __future__ import annotations

from batches import make_batch
from hypothesis import strategies as st

batches = st.builds(
    make_batch,
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 4),
    n=st.integers(2, 6),
    tokens=st.integers(1, 17),
    shuffle=st.booleans(),
)
