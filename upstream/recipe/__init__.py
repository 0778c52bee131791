# SPDX-License-Identifier: Apache-2.0
"""Covariance-weighted GRPO (arXiv 2605.11538); :mod:`recipe.cw_grpo.register` registers it in verl."""
