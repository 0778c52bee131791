# SPDX-License-Identifier: Apache-2.0
"""Where the recipe's files are: configuration, prompts and the reward."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

RECIPE = next(
    (
        directory
        for directory in (_PACKAGE / "recipe", _PACKAGE.parent / "recipe" / "cw_grpo")
        if (directory / "config").is_dir()
    ),
    _PACKAGE / "recipe",
)
"""The recipe: inside an installed package, beside the package in a checkout."""
