# SPDX-License-Identifier: Apache-2.0
"""Covariance-weighted GRPO (arXiv 2605.11538) for verl.

Importing this package imports nothing of torch or verl. verl loads :mod:`cw_grpo.plugin` through the ``verl.plugins``
entry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .weights import CovarianceWeights, covariance_weights

__all__ = ["CovarianceWeights", "__version__", "covariance_weights"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cw-grpo")
    if name in __all__:
        from . import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
