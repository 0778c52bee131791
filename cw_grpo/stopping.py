# SPDX-License-Identifier: Apache-2.0
"""Where a response ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl.workers.config import HFModelConfig


def stop_ids(model_config: HFModelConfig) -> frozenset[int]:
    """The end tokens that vLLM stops at: the tokenizer's and those of the generation config.

    Raises:
        ValueError: there are none.
    """
    named = [model_config.tokenizer.eos_token_id, getattr(model_config.generation_config, "eos_token_id", None)]
    ids = {i for entry in named if entry is not None for i in (entry if isinstance(entry, list) else [entry])}
    if not ids:
        raise ValueError(f"{model_config.local_path}: neither tokenizer nor generation config names an end token")
    return frozenset(ids)
