"""`cw-grpo doctor --address`: the doctor's checks on every node of a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from cw_grpo.doctor.local import versions

# In a process of its own, as the checks ask for; the last line is the result.
_CHECK = """
import json
from cw_grpo.doctor.local import run, versions
lines = []
passed = run(lines.append)
print(json.dumps({"passed": passed, "lines": lines, "versions": versions()}))
"""


def run(address: str, echo: Callable[[str], None], *, limit_s: float = 300.0) -> bool:
    """Print a line a node, and why if it fails; True if all pass, with the versions of this process.

    Args:
        address: of the cluster, as for `ray.init`; `auto` is the one of RAY_ADDRESS, or that runs on this machine.
        echo: takes a line.
        limit_s: seconds for all nodes, after which those without an answer fail.

    Raises:
        RuntimeError: there is no cluster.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def check(
        code: str, seconds: float
    ) -> tuple[int, str, str]:  # nested, so that a node needs nothing of this package
        import subprocess
        import sys

        try:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
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
            answers[node["NodeID"]] = task.remote(_CHECK, limit_s)
        done, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=limit_s)
        passed = True
        for node in nodes:
            gpus = node["Resources"].get("GPU", 0)
            name = f"node {node['NodeManagerAddress']} {node['NodeID'][:8]}, {gpus:.0f} GPUs"
            answer = answers[node["NodeID"]]
            try:
                problem = _problem(*ray.get(answer)) if answer in done else f"no answer within {limit_s:.0f} s"
            except Exception as error:  # of Ray, or of the node
                problem = str(error).strip()
            echo(f"ok     {name}" if problem is None else f"FAILED {name}\n       {problem}")
            passed &= problem is None
    finally:
        ray.shutdown()
    return passed


def _problem(status: int, output: str, errors: str) -> str | None:
    """What a node's answer says is wrong there."""
    try:
        result = json.loads(output.strip().rsplit("\n", 1)[-1])
    except ValueError:
        last = errors.strip().rsplit("\n", 1)[-1]
        return last or f"the checks ended with exit status {status}"
    if not result["passed"]:
        return result["lines"][-1].removeprefix("FAILED ")
    return _differing(versions(), result["versions"])


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    differing = [f"{name} {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]
    return "; ".join(differing) or None
