# SPDX-License-Identifier: Apache-2.0
"""Lets a job's reward function check itself before anything is started."""

from __future__ import annotations

from typing import Any


def check_reward(config: Any) -> None:
    """Let the job's reward function check itself before anything is started, if the job says `check_reward=true`.

    If the module of `reward.custom_reward_function.path` has a ``check_start``, it is called with the settings of
    `reward_kwargs`, the tokenizer's path and what the job hands to the chat template. Without the key nothing is
    imported: the module is anybody's, and the plugin is loaded in jobs that have nothing to do with CW-GRPO.

    Args:
        config: verl's whole job config.

    Raises:
        ValueError, RuntimeError: what ``check_start`` says.
    """
    custom = config.reward.get("custom_reward_function") or {}
    if not config.get("check_reward", False) or not custom.get("path"):
        return
    from verl.utils.fs import copy_to_local
    from verl.utils.import_utils import load_module

    check = getattr(load_module(custom["path"]), "check_start", None)
    if check is not None:
        model = config.actor_rollout_ref.model
        check(
            tokenizer=copy_to_local(model.get("tokenizer_path") or model.path),
            template_kwargs=dict(config.data.get("apply_chat_template_kwargs") or {}),
            **dict(custom.get("reward_kwargs") or {}),
        )
