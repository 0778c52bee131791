# SPDX-License-Identifier: Apache-2.0
"""References, and whether the recipe's reward can read them."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from cw_grpo.paths import RECIPE

LOST_BACKSLASH = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
    r"|\t(?=(?:ext\w*|imes|heta|frac|anh?|au|riangle|ilde|o)(?![A-Za-z]))"
    r"|\n(?=(?:eq|abla|ot|otin|eg|mid|leq|geq)(?![A-Za-z]))"
    r"|\r(?=(?:ight|ho|angle|floor|ceil)(?![A-Za-z]))"
)
"""Control characters that no text has, and what JSON makes of ``"\\times"``, ``"\\neq"`` or ``"\\right"``."""
SENTENCE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:\s+[A-Za-z]{2,}){2,}")
TEXT = re.compile(r"\\(?:text|mbox|mathrm|operatorname)\w*\s*\{[^{}]*\}")
BOX = re.compile(r"\\boxed\s*\{")
IN_JSON = r": in JSON a backslash is written twice, as in \\frac"
BATCH = 100
"""References that the reward is asked about at a time, for the progress bar."""


def load_reward(path: Path = RECIPE / "reward.py") -> ModuleType:
    """The recipe's reward, by path as verl loads it."""
    spec = importlib.util.spec_from_file_location("cw_grpo_recipe_reward", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe_reward = functools.cache(load_reward)
"""The reward that data is prepared for. Its processes start when first needed and end with this one."""


def has_lost_backslash(text: str) -> bool:
    """Whether a text has control characters in place of LaTeX's commands: ``"\\frac"`` in JSON is a form feed."""
    return LOST_BACKSLASH.search(text) is not None


def has_several_boxes(solution: str) -> bool:
    """Whether a solution has boxes of different contents, so that its last box may not be its answer."""
    last_box = recipe_reward().last_box
    pieces = BOX.split(solution)[1:]  # each starts inside a box
    return len({last_box(rf"\boxed{{{piece}") for piece in pieces} - {None}) > 1


def doubts(references: Iterable[str]) -> dict[str, str]:
    """Why a reference may not be what its author meant, for those of which there is doubt.

    A lost backslash, the answer mark ``####`` of GSM8K's solutions, three words in a row outside ``\\text{}``, or a
    text that the reward cannot parse.

    Raises:
        RuntimeError: the reward cannot start its comparing process (math-verify is missing, for instance).
    """
    distinct = list(dict.fromkeys(references))
    reasons = {}
    for reference, parsed in zip(distinct, _parsed(distinct), strict=True):
        if reason := _doubt(reference, parsed):
            reasons[reference] = reason
    return reasons


def _doubt(reference: str, parsed: bool) -> str | None:
    if has_lost_backslash(reference):
        return "the reference has a control character" + IN_JSON
    if "####" in reference:
        return "the reference has ####, which marks the answer of a solution"
    if SENTENCE.search(TEXT.sub("", reference)):
        return "the reference is a sentence"
    if not parsed:
        return "the reward cannot parse the reference: only an answer of the same characters equals it"
    return None


def _parsed(references: list[str]) -> Iterator[bool]:
    """Whether the reward can parse each reference within its limits of time and memory."""
    for start in tqdm(range(0, len(references), BATCH), desc="references", unit_scale=BATCH, disable=None, delay=2):
        yield from recipe_reward().parses(references[start : start + BATCH])
