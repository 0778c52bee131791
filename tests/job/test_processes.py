# SPDX-License-Identifier: Apache-2.0
"""Processes: nothing survives the stop of a job, signals stop it, and ignored signals do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cw_grpo.job.processes import MARKER, Job, start_marked, stop_signals, supervise

DRIVER = """
import os, subprocess, sys, time
import ray

ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=sys.argv[1])

@ray.remote(num_cpus=1)
class Actor:
    def work(self):
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        return os.getpid()

actors = [Actor.remote() for _ in range(2)]
ray.get([actor.work.remote() for actor in actors])
print("at work", flush=True)
time.sleep(600)
"""


def wait_for(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return value


@pytest.fixture
def ray_job(tmp_path_factory):
    """A Ray driver with actors that start processes of their own, as the launcher starts verl."""
    directory = tmp_path_factory.mktemp("ray")
    (directory / "driver.py").write_text(DRIVER)
    # Not below pytest's directory, whose path is too long for Ray's sockets.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cwg-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        job = Job(temporary)
        with (directory / "log").open("wb") as log:
            process = start_marked(
                [sys.executable, str(directory / "driver.py"), temporary], job.marker, os.environ, log
            )
            wait_for(lambda: "at work" in (directory / "log").read_text())
            yield job, process
            job.stop()
            process.wait(10)


def test_nothing_of_a_ray_cluster_survives_its_stop(ray_job) -> None:
    job, process = ray_job
    names = {p.name() for p in job.find_processes()}
    # Ray's agents overwrite the environment that others see; they belong to the job all the same.
    assert {"raylet", "gcs_server", "sleep", "ray::RuntimeEnvAgent"} <= names
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: "of another job"})
    found = job.find_processes()
    assert other.pid not in {p.pid for p in found} and os.getpid() not in {p.pid for p in found}
    assert job.stop() == len(found) or job.find_processes() == []
    process.wait(10)
    assert not [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert other.poll() is None
    other.kill()
    other.wait()


def test_nothing_of_a_ray_cluster_survives_when_its_driver_is_killed(ray_job) -> None:
    job, process = ray_job
    found = job.find_processes()
    process.kill()
    process.wait(10)
    job.stop()
    assert not [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


SUPERVISED = """
import logging, os, sys
from cw_grpo.job.processes import supervise
from pathlib import Path
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
print("started", flush=True)
command = [sys.executable, "-c", sys.argv[2]]
print(supervise(command, os.environ, Path(sys.argv[1]) / "log", marker=sys.argv[1]), flush=True)
"""


def start_supervised(tmp_path: Path, code: str, *before: str) -> subprocess.Popen:
    """A process that supervises Python code, once the code is at work."""
    command = [*before, sys.executable, "-c", SUPERVISED, str(tmp_path), textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: (tmp_path / "log").exists() and "at work" in (tmp_path / "log").read_text())
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_processes_and_is_announced_first(tmp_path, number) -> None:
    own = ["sleep", f"{600 + number}.{os.getpid()}"]  # told from those of tests that run beside this one
    process = start_supervised(
        tmp_path,
        f"""
        import signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen({own}, start_new_session=True)
        print("at" " work", flush=True)
        time.sleep(600)
        """,
    )
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output.index(f"stopping: {number.name}") < output.index("Outcome(status=None")
    assert f"received={number.value}, " in output and "stopped=2" in output
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == own]


def test_nohup_protects(tmp_path) -> None:
    code = """
    import pathlib, sys, time
    print("at" " work", flush=True)
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
    """.replace('"go"', repr(str(tmp_path / "go")))
    process = start_supervised(tmp_path, code, "nohup")
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert "Outcome(status=0, received=None" in output and "stopping" not in output


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored_and_the_others_are_caught(ignored) -> None:
    """SIGINT is ignored in the background jobs of a script."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL) for number in numbers
    }
    try:
        with stop_signals(*numbers) as received:
            for number in numbers:
                os.kill(os.getpid(), number)
        assert sorted(received) == sorted(set(numbers) - {ignored})
        assert signal.getsignal(ignored) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_a_tick_returns_stops_the_command(tmp_path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    outcome = supervise(command, os.environ, tmp_path / "log", marker=str(tmp_path), on_tick=lambda seconds: "too long")
    assert (outcome.status, outcome.received, outcome.problem) == (None, None, "too long")


def test_a_command_that_has_ended_is_seen_once_more_and_not_stopped(tmp_path) -> None:
    seen: list[float] = []
    outcome = supervise(["true"], os.environ, tmp_path / "log", marker=str(tmp_path), on_tick=seen.append)
    assert seen and outcome.status == 0
    outcome = supervise(["true"], os.environ, tmp_path / "log", marker=str(tmp_path), on_tick=lambda seconds: "late")
    assert (outcome.status, outcome.problem) == (0, None)
