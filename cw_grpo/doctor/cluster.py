# SPDX-License-Identifier: Apache-2.0
"""`cw-grpo doctor --address`: the doctor's checks on every node of a Ray cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

from cw_grpo.doctor.local import Result, versions

# In a process of its own, as the checks ask for; the last line is the result.
_CHECK = """
import json
from cw_grpo.doctor.local import run, versions
results = list(run())
problems = [result.problem for result in results if result.failed]
features = [result.problem for result in results if result.problem and not result.failed]
print(json.dumps({"problems": problems, "features": features, "versions": versions()}))
"""


def run(address: str, *, timeout: float = 300.0) -> Iterator[Result]:
    """Check every node: the versions must be those of this process.

    Args:
        address: of the cluster, as for `ray.init`; `auto` is the one of RAY_ADDRESS, or that runs on this machine.
        timeout: seconds for all nodes, after which those without an answer fail.

    Raises:
        RuntimeError: there is no cluster.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Nested, so that a node needs nothing of this package to run it.
    def check(code: str, directory: str, seconds: float) -> tuple[int, str, str]:
        import os
        import subprocess
        import sys

        here = directory if os.path.isdir(directory) else None  # a job's workers have it on their path if it is there
        command = [sys.executable, "-c", code]
        try:
            done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return 1, "", f"the checks took more than {seconds:.0f} s"
        return done.returncode, done.stdout, done.stderr

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except Exception as error:
        raise RuntimeError(f"no Ray cluster at {address}: {error}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = {}
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # No CPU, so that it need not wait for a job that has them all.
            task = ray.remote(check).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
            answers[node["NodeID"]] = task.remote(_CHECK, os.getcwd(), timeout)
        done, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=timeout)
        for node in nodes:
            gpus = node["Resources"].get("GPU", 0)
            name = f"node {node['NodeManagerAddress']} {node['NodeID'][:8]}, {gpus:.0f} GPUs"
            answer = answers[node["NodeID"]]
            if answer not in done:
                yield Result(name, f"no answer within {timeout:.0f} s")
                continue
            try:
                yield from _results(name, *ray.get(answer))
            except Exception as error:  # of Ray, or of the node
                yield Result(name, str(error).strip())
    finally:
        ray.shutdown()


def _results(name: str, status: int, output: str, errors: str) -> Iterator[Result]:
    """What a node's answer says of it."""
    try:
        answer = json.loads(output.strip().rsplit("\n", 1)[-1])
    except ValueError:
        last = errors.strip().rsplit("\n", 1)[-1]
        yield Result(name, last or f"the checks ended with exit status {status}")
        return
    problem = answer["problems"][0] if answer["problems"] else _differing(versions(), answer["versions"])
    yield Result(name, problem)
    for feature in answer["features"]:
        yield Result(name, feature, fatal=False)


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    differing = [f"{name} {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]
    return "; ".join(differing) or None
