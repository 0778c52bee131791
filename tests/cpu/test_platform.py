# SPDX-License-Identifier: Apache-2.0
"""The backend is there when the environment asks for it, and only then."""

from __future__ import annotations

import json
import os
import subprocess
import sys

REPORT = """
import json, sys
import verl
from verl.plugin.platform import PlatformRegistry
report = {"platforms": PlatformRegistry.registered_names(), "loaded": "cw_grpo.cpu" in sys.modules}
"""
USE = """
import torch
from verl.utils.device import get_device_id, get_device_name, get_nccl_backend, get_torch_device
from verl.utils.memory_utils import aggressive_empty_cache
from verl.workers.engine import EngineRegistry
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import get_rollout_replica_class
from verl.utils.distributed import initialize_global_process_group_ray
aggressive_empty_cache()
initialize_global_process_group_ray()
total = torch.ones(2, device=get_device_id())
torch.distributed.all_reduce(total)
report |= {
    "device": [get_device_name(), str(get_device_id()), get_nccl_backend(), get_torch_device().memory_allocated() > 0],
    "engines": [
        EngineRegistry.get_engine_cls(model, "fsdp2").__name__ for model in ("language_model", "value_model")
    ],
    "rollout": [get_rollout_class("transformers").__name__, get_rollout_replica_class("transformers").__name__],
    "reduced": total.tolist(),
}
"""
PRINT = "print(json.dumps(report))"


def run(code: str, tmp_path, **environment: str) -> dict:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    process = subprocess.run(
        [sys.executable, "-c", code + PRINT],
        env={**inherited, "DIST_INIT_METHOD": f"file://{tmp_path}/store", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_registered_when_asked_for(tmp_path):
    report = run(REPORT + USE, tmp_path, VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES="cw_grpo.cpu")
    assert "cpu" in report["platforms"]
    assert report["device"] == ["cpu", "cpu", "gloo", True]
    assert report["engines"] == ["FSDPEngineWithLMHead", "FSDPEngineWithValueHead"]
    assert report["rollout"] == ["TransformersAdapter", "TransformersReplica"]
    assert report["reduced"] == [1.0, 1.0]


def test_absent_otherwise(tmp_path):
    report = run(REPORT, tmp_path)
    assert not report["loaded"]
    assert "cpu" not in report["platforms"]


def test_never_chosen_by_itself(tmp_path):
    code = """
from verl.plugin.platform import get_platform
report["chosen"] = get_platform().vendor_name
"""
    assert run(REPORT + code, tmp_path, VERL_USE_EXTERNAL_MODULES="cw_grpo.cpu")["chosen"] != "cpu"
