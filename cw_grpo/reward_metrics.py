"""What verl leaves out about a job's reward: its parts in the log of every step, and a check before the job starts.

verl logs the score of a training batch but none of what a reward function says beside it; only validation does that.
Nothing here knows a particular reward: any function that returns these keys has them logged, and any module that has a
``check_start`` has it called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PARTS = ("acc", "format", "timeout", "no_answer", "bad_reference")
"""Keys of `recipe/cw_grpo/reward.py` that are 0 or 1."""


def summarise(infos: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Means of the reward's parts over responses, as ``reward/acc``, ``reward/format`` and so on.

    None of the names contains min, max, sum or total: verl's reducers treat such names in a way of their own.

    Args:
        infos: for each key the values of all responses; None where a response has none. Other keys are left out.
    """
    metrics = {}
    for part in PARTS:
        values = [float(value) for value in infos.get(part, ()) if value is not None]
        if values:
            metrics[f"reward/{part}"] = sum(values) / len(values)
    return metrics


def add_reward_metrics_v1(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around `PPOTrainer._compute_metrics` of the V1 trainers, where a batch is keys into verl's TransferQueue.

    For jobs with a reward function of their own. Each response counts once, by its final output if an agent made
    several; padding rows do not count.
    """
    result = wrapped(*args, **kwargs)
    call = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    if not call["self"].config.reward.custom_reward_function.path:
        return result
    batch, metrics = call["batch"], call["metrics"]
    final: dict[str, tuple[int, str]] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        session, _, index = key.rpartition("_")
        if not tag.get("is_padding", False):
            final[session] = max(final.get(session, (-1, "")), (int(index) if index.isdigit() else 0, key))
    if not final:
        return result

    import transfer_queue as tq

    data = tq.kv_batch_get(
        keys=[key for _, key in final.values()], partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    fields = data.pop("extra_fields").tolist()
    infos = [(f.get("reward_extra_info") or {}) if isinstance(f, dict) else {} for f in fields]
    metrics.update(summarise({part: [info.get(part) for info in infos] for part in PARTS}))
    return result


def add_reward_metrics_v0(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around `compute_data_metrics`, whose batch holds the reward's parts in the trainers before V1.

    The V1 trainers hand it a batch without them, so that both hooks may be in place at once.
    """
    result = wrapped(*args, **kwargs)
    batch = inspect.signature(wrapped).bind(*args, **kwargs).arguments["batch"]
    return result | summarise({part: batch.non_tensor_batch.get(part, ()) for part in PARTS})


def check_reward(config: Any) -> None:
    """Let the job's reward function check itself before anything is started.

    If the module of `reward.custom_reward_function.path` has a ``check_start``, it is called with the settings of
    `reward_kwargs`, the tokenizer's path and what the job hands to the chat template.

    Args:
        config: verl's whole job config.

    Raises:
        ValueError, RuntimeError: what ``check_start`` says.
    """
    custom = config.reward.get("custom_reward_function") or {}
    if not custom.get("path"):
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
