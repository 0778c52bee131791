# SPDX-License-Identifier: Apache-2.0
"""An agent loop whose sessions have one or two outputs, for verl's `agent_loop_config_path`."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class SecondThoughts(SingleTurnAgentLoop):
    """Answers; and, if the answer's first token id is even, once more: two rows of one session."""

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> list:
        outputs = [await super().run(sampling_params, **kwargs)]
        if outputs[0].response_ids[0] % 2 == 0:
            outputs.append(await super().run(sampling_params, **kwargs))
        return outputs
