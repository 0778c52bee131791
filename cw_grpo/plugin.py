# SPDX-License-Identifier: Apache-2.0
"""What is registered in verl and which of its functions are hooked, as a table.

verl loads this module through the ``verl.plugins`` entry point at ``import verl``, in every process. It imports nothing
of verl by itself: registrations and hooks take effect right after verl's own modules were imported, before anybody can
take a name from them.
"""

from __future__ import annotations

from types import ModuleType

import wrapt

from . import advantage, checks, group_order, policy_loss, settings
from .hooks import Hook, Observer, attach, record, reward_metrics

_V0 = "verl.trainer.ppo.ray_trainer"
_V1 = "verl.trainer.ppo.v1.trainer_base"
_METRICS = ("verl.trainer.ppo.metric_utils", "compute_data_metrics")
_V0_ADVANTAGE = (_V0, "compute_advantage")
_V1_ADVANTAGE = ("verl.trainer.ppo.v1.utils", "compute_advantage_for_multi_trajectories")
_BATCH = ("data", "adv_estimator", "config")
_STEP = ("batch", "metrics", "global_steps")
_CHECKS = "check of the settings at start-up"
_LINE = "line that says where the weights are applied"

HOOKS = (
    Hook("verl.utils.config", "validate_config", checks.check_settings, ("config",), feature=_CHECKS),
    Hook(*_V0_ADVANTAGE, advantage.weight_batch, _BATCH, trainer="V0"),
    Hook(*_V1_ADVANTAGE, advantage.weight_batch, _BATCH, trainer="V1"),
    Hook(*_V0_ADVANTAGE, group_order.check_batch_order, _BATCH, trainer="V0", for_losses=True),
    Hook(*_V1_ADVANTAGE, group_order.check_batch_order, _BATCH, trainer="V1", for_losses=True),
    Hook(_V1, "PPOTrainer._balance_batch", group_order.keep_groups_together, trainer="V1", for_losses=True),
    Hook(*_V0_ADVANTAGE, checks.announce, _BATCH, feature=_LINE),
    Hook(*_V1_ADVANTAGE, checks.announce, _BATCH, feature=_LINE),
    Observer(*_METRICS, advantage.add_metrics, ("batch",), feature="metrics of the weights"),
    Observer(*_METRICS, reward_metrics.add_v0, ("batch",), feature="metrics of the reward in V0"),
    Observer(_V1, "PPOTrainer._compute_metrics", reward_metrics.add_v1, _STEP, feature="metrics of the reward in V1"),
    Observer(_V1, "PPOTrainer._compute_metrics", record.record_v1, _STEP, feature="recording in V1"),
    Observer(_V0, "RayPPOTrainer._get_gen_batch", record.note_step, ("batch",), feature="recording in V0"),
    Observer(_V0, "compute_advantage", record.record_v0, _BATCH, feature="recording in V0"),
)


@wrapt.when_imported("verl.trainer.ppo.core_algos")
def _register(core_algos: ModuleType) -> None:
    core_algos.register_adv_est(settings.ESTIMATOR)(advantage.compute_cw_grpo_outcome_advantage)
    core_algos.register_policy_loss(settings.LOSS)(policy_loss.compute_policy_loss_cw_grpo)
    core_algos.register_policy_loss(settings.LOSS_RELEASED)(policy_loss.compute_policy_loss_cw_grpo_released)


attach(HOOKS)
