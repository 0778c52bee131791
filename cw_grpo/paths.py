"""Where the recipe's files are: configuration, prompts and the reward."""

from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "recipe" / "cw_grpo"
"""The recipe in the checkout that this package is installed from."""
