# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes that runs already: the doctor looks at both, and a job trains across both.

The nodes are two raylets on this machine, started as a user starts them.
"""

from __future__ import annotations

import ast
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from main_job import COMPARABLE, WHOLE_GROUP, Run, assert_same_updates, micro

from cw_grpo.job.processes import Job, start_marked
from cw_grpo.metrics import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CLI = str(Path(sys.executable).with_name("cw-grpo"))
RAY = (sys.executable, "-m", "ray.scripts.scripts")


# A cluster that is there takes no such settings.
RAY_INIT = tuple(
    f"ray_kwargs.ray_init.{key}=null" for key in ("num_cpus", "num_gpus", "include_dashboard", "object_store_memory")
)


class Cluster:
    """Two nodes with a "GPU" each, and what was started for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        # A token of its own: without one Ray takes what it finds in the home folder, but not on every node.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Ray's workers would give way to whatever else this machine does.
        self.env = os.environ | token | {"RAY_ADDRESS": self.address, "RAY_worker_niceness": "0"}
        self.job = Job(str(folder))
        port = self.address.rsplit(":", 1)[1]
        self.start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", "--num-gpus=1")
        self.start(f"--address={self.address}", "--num-gpus=1")

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        """Start a node, to its end."""
        log = self.folder / f"{secrets.token_hex(4)}.log"
        command = (*RAY, "start", "--block", "--disable-usage-stats", "--num-cpus=16", *arguments)
        own = {key: value for key, value in self.env.items() if key != "RAY_ADDRESS"} | env
        with log.open("wb") as output:
            process = start_marked([*command, "--object-store-memory=300000000"], self.job.marker, own, output)
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        return process

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [CLI, *command], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
        )

    def look(self, *expressions: str) -> tuple[Any, ...]:
        """What Ray says of the cluster and its actors, in a process of its own."""
        code = f"""
import ray
from ray._private.state import actors as list_actors
ray.init("auto", log_to_driver=False)
actors = list_actors().values()
print(repr(({", ".join(expressions)},)))
"""
        done = subprocess.run([sys.executable, "-c", code], env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return ast.literal_eval(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not below pytest's folder, whose path is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="cwn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = None
        try:
            made = Cluster(Path(folder))
            yield made
        finally:
            (made.job if made else Job(folder)).stop()


def test_a_loss_across_the_nodes_of_a_cluster_that_stays_makes_the_estimators_update(
    cluster: Cluster, comparable: Callable[..., Run], home: Path, tmp_path: Path
) -> None:
    """The loss takes the same weights from the same policy: strictly on-policy its gradient is the estimator's."""
    loss = ("method=cw_grpo_live", micro(24), "launcher.start_ray=false", "trainer.nnodes=2", *RAY_INIT)
    run = Run(tmp_path / "run", home, *COMPARABLE, *loss, env=cluster.env)
    assert "Ray is up" in run.finish()
    estimator = comparable(*WHOLE_GROUP)
    assert_same_updates(run, estimator)
    of_loss, of_estimator = ([name for name in of.metrics if name.startswith(PREFIX)] for of in (run, estimator))
    assert sorted(of_loss) == sorted(of_estimator)
    # Twice: the logs of both nodes lie in one directory here, and each node sends them.
    assert run.log.count("CW-GRPO: the policy loss cw_grpo_live applies the weights") == 2
    # One rank on each node, by Ray's own list of actors, none of which is left; the nodes are.
    ranks, left, nodes = cluster.look(
        "{a['Address']['NodeID'] for a in actors if 'WorkerDict' in a['ActorClassName']}",
        "[a['ActorClassName'] for a in actors if a['State'] != 'DEAD']",
        "sum(node['Alive'] for node in ray.nodes())",
    )
    assert (len(ranks), left, nodes) == (2, [], 2)


def test_servers_on_both_nodes_answer_an_evaluation(
    cluster: Cluster, tiny_model: str, write_sums: Callable[[Path, int], None], tmp_path: Path
) -> None:
    write_sums(tmp_path / "sums.parquet", 20)
    settings = ("launcher.start_ray=false", "trainer.nnodes=2", *RAY_INIT)
    done = cluster.run(
        *("eval", f"base={tiny_model}", f"--benchmarks={tmp_path}/sums.parquet", f"--out={tmp_path}/out"),
        *("--samples=2", "--max-tokens=24", "--temperature=1", *(f"--set={setting}" for setting in settings)),
    )
    assert done.returncode == 0, done.stdout
    assert len((tmp_path / "out/base/sums.answers.jsonl").read_text().splitlines()) == 40
    nodes, servers = cluster.look(
        "sum(node['Alive'] for node in ray.nodes())",
        "{a['Address']['NodeID'] for a in actors if 'Server' in a['ActorClassName']}",
    )
    assert (nodes, len(servers)) == (2, 2)


def test_the_doctor_looks_at_every_node(cluster: Cluster) -> None:
    node = cluster.start(f"--address={cluster.address}", VERL_USE_EXTERNAL_PLUGINS="none")
    try:
        done = cluster.run("doctor", "--address=auto")
    finally:
        node.terminate()
        node.wait(30)
    lines = [line for line in done.stdout.splitlines() if " node " in line]
    assert done.returncode == 1, done.stdout
    assert sorted(line[:6] for line in lines) == ["FAILED", "ok    ", "ok    "], done.stdout
    assert "VERL_USE_EXTERNAL_PLUGINS='none'" in done.stdout
