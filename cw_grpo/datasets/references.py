"""References, and the recipe's reward, which has to read them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from cw_grpo.paths import RECIPE


def load_reward(path: Path = RECIPE / "reward.py") -> ModuleType:
    """The recipe's reward, by path as verl loads it."""
    spec = importlib.util.spec_from_file_location("cw_grpo_recipe_reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
