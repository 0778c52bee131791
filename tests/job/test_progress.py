# SPDX-License-Identifier: Apache-2.0
"""What a job's log and metrics become on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cw_grpo.job.plan import LauncherSettings
from cw_grpo.job.progress import Follower, Progress


@pytest.fixture
def job(tmp_path: Path):
    """A job's progress, and functions that add to its log and its metrics."""
    log, metrics = tmp_path / "log", tmp_path / "metrics"
    log.touch()
    settings = LauncherSettings(startup_timeout_s=900, idle_warning_s=120)

    def say(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    def measure(step: int, **data) -> None:
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "data": data}) + "\n")

    return Progress(log, 0, metrics, 30, settings), say, measure


def test_stages_are_shown_in_order_and_once(job, caplog) -> None:
    progress, say, _ = job
    say("Started a local Ray instance.")
    assert progress(1) is None
    say("Started a local Ray instance.\nactor and ref model engine initialized")
    assert progress(2) is None
    assert caplog.messages == [
        "    1 s  Ray is up; waiting for the trainer's process and the data",
        "    2 s  the trainer has the model; waiting for the rollout server and the agents",
    ]


def test_a_step_says_how_long_the_others_will_take(job, caplog) -> None:
    progress, _, measure = job
    for step, duration in ((1, 30.0), (2, 12.0), (3, 10.0), (29, 12.0), (30, 12.0)):
        measure(step, **{"training/global_step": step, "timing_s/step": duration})
    progress(100)
    left = [line.partition("0 s  ")[2].rpartition(" s  ")[2] for line in caplog.messages]
    # The median of the durations so far, times the steps to come; nothing at the end.
    assert left[:4] == ["14 min left", "10 min left", "5 min left", "10 s left"]
    assert "left" not in caplog.messages[4]


def test_a_limit_on_the_start_names_ray_if_the_log_stands_still(job) -> None:
    progress, say, _ = job
    say("Started a local Ray instance.")
    assert progress(10) is None and progress(899) is None
    problem = progress(901)
    assert 'no metrics after 900 s (launcher.startup_timeout_s); its log does not yet say "data is loaded"' in problem
    assert "Its last output is 891 s old. Ray waits in silence" in problem and "num_cpus" in problem


def test_a_limit_on_the_start_names_the_limit_if_the_log_moves(job) -> None:
    progress, say, _ = job
    for seconds in range(60, 900, 60):
        say(f"validating, batch {seconds}")
        assert progress(seconds) is None
    problem = progress(901)
    assert "verl is still at work, its last line is: validating, batch 840" in problem
    assert "needs a higher limit" in problem and "Ray waits" not in problem


def test_a_validation_ends_the_start(job) -> None:
    """With `trainer.val_only` there is no training step at all."""
    progress, _, measure = job
    measure(0, **{"val-core/math500/acc/mean@4": 0.5})
    assert progress(800) is None and progress(5000) is None
    assert progress.started and progress.last_step == 0


def test_silence_is_said_at_longer_and_longer_intervals(job, caplog) -> None:
    progress, say, measure = job
    say("at work")
    measure(1, **{"training/global_step": 1})
    for seconds in range(0, 1000, 10):
        progress(seconds)
    assert [line for line in caplog.messages if "no output" in line] == [
        "  130 s  no output from verl for 130 s",
        "  250 s  no output from verl for 250 s",
        "  490 s  no output from verl for 490 s",
        "  970 s  no output from verl for 970 s",
    ]


# As vLLM 0.27 wrote them: after `kill -9` of its engine, and after an error in one of its workers.
ENGINE_DIED = (
    "\x1b[36m(vLLMHttpServer pid=18931)\x1b[0m ERROR 11-27 22:13:23 [async_llm.py:724] "
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)"
)
WORKER_FAILED = (
    "(vLLMHttpServer pid=1) (EngineCore pid=2) ERROR 11-27 21:17:07 [core.py:1584] Invocation of collective_rpc method "
    "failed\n(vLLMHttpServer pid=1) (EngineCore pid=2) ERROR 11-27 21:17:07 [core.py:1584] RuntimeError: Worker failed"
)


@pytest.mark.parametrize("text", [ENGINE_DIED, WORKER_FAILED])
def test_a_job_that_waits_for_a_dead_vllm_is_stopped(job, text: str) -> None:
    progress, say, measure = job
    measure(1, **{"training/global_step": 1})
    say(text)
    assert progress(110) is None and progress(229) is None
    assert progress(231) == "vLLM failed, and no step has ended in 121 s since"


@pytest.mark.parametrize("line", [ENGINE_DIED, "pending: 3, running: 0"])
@pytest.mark.parametrize(("duration", "stopped"), [(10.0, 230), (100.0, 410)])
def test_a_job_that_keeps_asking_a_dead_vllm_is_stopped(job, line: str, duration: float, stopped: int) -> None:
    """After two minutes, or after what three steps take: a step may end without vLLM."""
    progress, say, measure = job
    measure(1, **{"training/global_step": 1, "timing_s/step": duration})
    say(ENGINE_DIED)
    assert progress(100) is None
    for seconds in range(110, 1000, 10):
        say(line)
        if (problem := progress(seconds)) is not None:
            break
    assert (seconds, problem) == (stopped, f"vLLM failed, and no step has ended in {stopped - 100} s since")


def test_a_job_that_goes_on_after_an_error_of_vllm_is_not_stopped(job, caplog) -> None:
    progress, say, measure = job
    say(ENGINE_DIED)
    assert progress(10) is None
    measure(1, **{"training/global_step": 1})
    assert progress(20) is None and progress(1000) is None
    assert caplog.messages[-1] == " 1000 s  no output from verl for 990 s"


def test_vllm_that_ends_after_the_last_step_stops_nothing(job) -> None:
    progress, say, measure = job
    measure(30, **{"training/global_step": 30})
    assert progress(10) is None
    say(ENGINE_DIED)
    assert progress(20) is None and progress(1000) is None


def test_silence_comes_with_the_error_before_it(job, caplog) -> None:
    progress, say, _ = job
    say("(WorkerDict pid=7) ValueError: no such reward\nat work")
    assert progress(10) is None and progress(131) is None
    assert caplog.messages == [
        "  131 s  no output from verl for 121 s. The last error in its log: ValueError: no such reward"
    ]


def test_a_follower_reads_whole_lines_as_they_come(tmp_path) -> None:
    path = tmp_path / "log"
    follower = Follower(path)
    assert follower.lines() == []
    path.write_text("one\ntw")
    assert follower.lines() == ["one"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    assert follower.lines() == ["two", "three"] and follower.lines() == []


def test_a_file_that_cannot_be_read_for_a_while_ends_nothing(job, caplog) -> None:
    """As on a network file system; here a directory is in its place."""
    progress, _, measure = job
    progress.metrics.path.mkdir()
    assert progress(1) is None and progress(901) is None
    progress.metrics.path.rmdir()
    assert "no metrics after 900 s" in progress(902)
    measure(1, **{"training/global_step": 1, "critic/score/mean": 0.5})
    assert progress(902) is None
    warning, step = caplog.messages[:2]
    assert warning.startswith("lines of progress are missing (IsADirectoryError: ") and "the job goes on" in warning
    assert "step  1/30  reward 0.500" in step
