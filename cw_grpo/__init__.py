"""Covariance-weighted GRPO (arXiv 2605.11538) for verl.

Importing this package imports torch and nothing of verl; verl loads :mod:`cw_grpo.plugin` by itself through the
``verl.plugins`` entry point.
"""

from cw_grpo.weights import CovarianceWeights, covariance_weights

__version__ = "0.1.0"
__all__ = ["CovarianceWeights", "__version__", "covariance_weights"]
