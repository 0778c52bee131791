# SPDX-License-Identifier: Apache-2.0
"""Ray's workers of a CPU job look for garbage less often, from before verl is imported there."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

from cw_grpo.job.plan import make_plan

WORKER = """
import json, sys
import ray

@ray.remote
def look():
    import gc
    return [list(gc.get_threshold()), gc.isenabled(), [name for name in ("torch", "verl") if name in sys.modules]]

ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=json.loads(sys.argv[1])
)
print(json.dumps(ray.get(look.remote(), timeout=240)))
"""


def test_the_set_up_of_the_recipes_workers() -> None:
    hook = make_plan(["cluster=cpu"]).config.ray_kwargs.ray_init.runtime_env.worker_process_setup_hook
    command = [sys.executable, "-c", WORKER, json.dumps({"worker_process_setup_hook": hook})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (first, *later), enabled, imported = json.loads(done.stdout.splitlines()[-1])
    assert first > 10 * gc.get_threshold()[0]
    assert later == [10, 10] and enabled and imported == []
