# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes that runs already: two raylets on this machine, started as a user starts them."""

from __future__ import annotations

import ast
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cw_grpo.job.processes import Job, start_marked

CLI = str(Path(sys.executable).with_name("cw-grpo"))
RAY = (sys.executable, "-m", "ray.scripts.scripts")

# A cluster that is there takes no such settings.
NOT_TAKEN = ("num_cpus", "num_gpus", "include_dashboard", "object_store_memory")
ON_BOTH_NODES = (
    "launcher.start_ray=false",
    "trainer.nnodes=2",
    *(f"ray_kwargs.ray_init.{key}=null" for key in NOT_TAKEN),
)
"""The settings of a job that runs on it."""


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
