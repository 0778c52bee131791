# SPDX-License-Identifier: Apache-2.0
"""verl makes an agent loop for each response: here without hydra and, after the first, without a warning."""

from __future__ import annotations

from omegaconf import OmegaConf

import cw_grpo.cpu  # noqa: F401  patches what verl imports


def test_a_class_alone_is_called_and_anything_more_is_left_to_hydra() -> None:
    from verl.experimental.agent_loop import agent_loop

    instantiate, node = agent_loop.hydra.utils.instantiate, OmegaConf.create({"key": 1})
    direct = instantiate(config={"_target_": "builtins.dict"}, given=node)
    by_hydra = instantiate(config={"_target_": "builtins.dict", "own": 2}, given=node)
    assert direct == {"given": node} and by_hydra == {"own": 2, "given": node}
    # hydra hands over a copy of a configuration.
    assert direct["given"] is node and by_hydra["given"] is not node


def test_verls_own_agent_loops_name_their_class_alone() -> None:
    from verl.experimental.agent_loop import single_turn_agent_loop  # noqa: F401  registers its loop
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

    assert set(_agent_loop_registry["single_turn_agent"]) == {"_target_"}


def test_a_family_of_models_that_verl_does_not_know_is_warned_of_once(caplog) -> None:
    from verl.utils.tokenizer import continuous_token_wiring

    for name in ("once", "twice", "once"):
        continuous_token_wiring.logger.warning("said %s", name)
    assert [record.getMessage() for record in caplog.records] == ["said once", "said twice"]
