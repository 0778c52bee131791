# SPDX-License-Identifier: Apache-2.0
"""`cw-grpo train` with a stand-in for verl's trainer: what it shows, and how it ends. `tests/e2e` has verl's own."""

from __future__ import annotations

import functools
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cw_grpo.job.plan import LaunchError
from cw_grpo.runs import attempt_files

CLI = Path(sys.executable).with_name("cw-grpo")


def test_steps_are_shown_and_drawn_and_the_status_is_the_jobs(run, fake_verl, run_dir) -> None:
    fake_verl(
        """
        print("Started a local Ray instance.")
        with open(os.environ["VERL_FILE_LOGGER_PATH"], "a") as file:  # before training
            file.write(json.dumps({"step": 0, "data": {"val-core/math500/acc/mean@4": 0.5}}) + "\\n")
        for step in (1, 2, 3):
            log(step, **{"critic/score/mean": step / 4, "actor/entropy": 1 / step})
        """,
    )
    status, lines = run()
    text = "\n".join(lines)
    assert status == 0
    assert "Ray is up" in text
    assert "step 0/3  math500 0.500" in text
    assert "step 2/3  reward 0.500  entropy 0.500  0.1 s" in text
    assert "reward            first step 0.250   last step 0.750" in text
    assert (run_dir / "run.png").stat().st_size > 10_000


def test_a_metric_that_is_not_a_number_does_not_end_the_run(run, fake_verl, run_dir) -> None:
    # verl's file logger writes a NaN as null.
    fake_verl( """
        for step in (1, 2, 3):
            log(step, **{"critic/score/mean": 0.5, "actor/entropy": None if step == 2 else 0.25,
                         "val-core/math500/acc/mean@4": None})
    """)  # fmt: skip
    status, lines = run()
    assert status == 0
    text = "\n".join(lines)
    assert "step 2/3  reward 0.500  entropy -  math500 -  0.1 s" in text and "step 3/3" in text


def test_a_failure_has_the_jobs_status_and_its_last_errors(run, fake_verl, run_dir) -> None:
    fake_verl(
        """
        subprocess.Popen(["sleep", "603"], start_new_session=True)
        print("\\x1b[36m(TaskRunner pid=12)\\x1b[0m ValueError: no such optimizer")
        sys.exit(3)
        """
    )
    status, lines = run()
    assert status == 3
    assert lines[-4:] == [
        "the job ended with exit status 3:",
        "  ValueError: no such optimizer",
        "there is no checkpoint (trainer.save_freq=2): the same command starts from the beginning",
        f"all of verl's output: {run_dir / 'verl.log'}",
    ]
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "603"]]


def test_a_job_that_never_starts_is_stopped_with_the_likely_reason(run, fake_verl) -> None:
    fake_verl("print('Started a local Ray instance.', flush=True); time.sleep(600)")
    status, lines = run("launcher.startup_timeout_s=4", "launcher.idle_warning_s=1")
    assert status == 1
    text = "\n".join(lines)
    assert "no output from verl for" in text
    assert (
        'stopped: no metrics after 4 s (launcher.startup_timeout_s); its log does not yet say "data is loaded"' in text
    )
    assert "Ray waits in silence" in text


DIES = "print('EngineDeadError: EngineCore encountered an issue', flush=True); time.sleep(600)"
DOUBTFUL = "step 2 was saved, but its metrics were not: it may have had only the responses that were finished"


def test_a_step_that_was_saved_after_vllm_died_is_named(run, fake_verl, run_dir) -> None:
    saves = (
        f"os.makedirs('{run_dir}/checkpoints/global_step_2/actor')",
        f"open('{run_dir}/checkpoints/latest_checkpointed_iteration.txt', 'w').write('2')",
    )
    fake_verl(f"log(1); {'; '.join(saves)}; {DIES}")
    status, lines = run("launcher.idle_warning_s=1")
    assert status == 1
    at = lines.index("  EngineDeadError: EngineCore encountered an issue")
    assert lines[at - 1].startswith("stopped: vLLM failed, and no step has ended in ")
    assert lines[at + 1] == f"the same command resumes from the checkpoint of step 2; {DOUBTFUL}"


def test_a_step_of_an_earlier_start_is_whole(run, fake_verl, checkpoint) -> None:
    fake_verl("log(1); log(2); sys.exit(1)")
    run()
    checkpoint(2)
    fake_verl(DIES)
    _, lines = run("launcher.idle_warning_s=1")
    assert "the same command resumes from the checkpoint of step 2" in lines
    assert not any("was saved" in line for line in lines)


def start_until_step_1(recipe: Path, tmp_path: Path) -> subprocess.Popen:
    command = [CLI, "train", f"--config-path={recipe}", "--config-name=job", f"--home={tmp_path / 'home'}"]
    # Ctrl-C reaches it even where the tests are a background job of a script, which starts with SIGINT ignored.
    catches = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=catches)
    for line in process.stdout:
        if "step 1/3" in line:
            break
    return process


def test_ctrl_c_stops_the_job_at_once_and_says_what_is_lost(recipe, tmp_path, fake_verl) -> None:
    fake_verl(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "601"], start_new_session=True)
        log(1, **{"critic/score/mean": 0.5})
        time.sleep(600)
        """
    )
    process = start_until_step_1(recipe, tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert output.splitlines()[:3] == [
        "stopping: SIGINT",
        "stopped by SIGINT; 2 processes ended",
        "there is no checkpoint (trainer.save_freq=2): the same command starts from the beginning; step 1 is lost",
    ]
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "601"]]


def test_the_job_does_not_outlive_a_launcher_that_was_killed(recipe, tmp_path, fake_verl) -> None:
    fake_verl("log(1); time.sleep(600)")
    process = start_until_step_1(recipe, tmp_path)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    child.wait(60)


def test_steps_after_the_last_checkpoint_are_named_as_lost(run, fake_verl, checkpoint) -> None:
    fake_verl("[log(step, **{'critic/score/mean': 0.5}) for step in (1, 2, 3)]; sys.exit(1)")
    run()
    checkpoint(1)
    _, lines = run()
    assert "the same command resumes from the checkpoint of step 1; steps 2 to 3 are lost" in lines


def test_a_finished_run_says_so_and_fresh_keeps_it(run, fake_verl, checkpoint, run_dir) -> None:
    fake_verl("[log(s, **{'critic/score/mean': 0.5}) for s in (1, 2, 3)]")
    run()
    checkpoint(3)
    status, lines = run()
    assert status == 0
    assert lines[0] == "this run is finished: 3 of 3 steps" and "--fresh" in lines[-1]
    assert len(attempt_files(run_dir)) == 1

    aside = run_dir.with_name("job.1")
    status, lines = run(fresh=True)
    assert status == 0 and lines[0] == f"the earlier run is kept in {aside}"
    assert len(attempt_files(aside)) == 1
    assert not (run_dir / "checkpoints").exists()


def test_the_report_is_built_and_its_failure_does_not_spoil_the_run(run, fake_verl, run_dir) -> None:
    fake_verl("log(1, **{'critic/score/mean': 0.5})")
    built: list[Path] = []

    def build(run: Path) -> str:
        built.append(run)
        return "the report"

    status, lines = run(build_report=build)
    assert status == 0 and lines[-1] == "report: the report" and built == [run_dir]

    def fail(run: Path) -> str:
        raise ValueError("Axis limits cannot be NaN or Inf")

    status, lines = run(build_report=fail, fresh=True)
    assert status == 0 and lines[-1] == "no report: ValueError: Axis limits cannot be NaN or Inf"


def test_the_job_sees_where_its_loggers_write(run, fake_verl, run_dir) -> None:
    fake_verl("print({key: os.environ[key] for key in ('TENSORBOARD_DIR', 'WANDB_DIR')}); log(1)")
    run()
    expected = {"TENSORBOARD_DIR": str(run_dir / "tensorboard"), "WANDB_DIR": str(run_dir)}
    assert str(expected) in (run_dir / "verl.log").read_text()


@pytest.mark.parametrize("logger", ["console", "[console,wandb]"])
def test_a_run_whose_metrics_nobody_could_read_is_rejected(run, logger: str) -> None:
    with pytest.raises(LaunchError, match="has no `file`.*trainer.logger="):
        run(f"trainer.logger={logger}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("method=grop",), ("Could not find 'method/grop'", "clip_cov", "did you mean grpo")),
        (("--freshh",), ("No such option", "--freshh", "--fresh")),
    ],
)
def test_the_command_works_from_any_directory_and_names_a_mistake(tmp_path, arguments, said) -> None:
    done = subprocess.run([CLI, "train", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_of_every_start_is_noted(run, fake_verl, run_dir) -> None:
    fake_verl("log(1, **{'critic/score/mean': 0.5})")
    run(command=["cw-grpo", "train", "scale=tiny"])
    run(command=["cw-grpo", "train", "scale=tiny", "a key='x y'"])
    lines = (run_dir / "commands.txt").read_text().splitlines()
    assert [shlex.split(line) for line in lines] == [
        ["cw-grpo", "train", "scale=tiny"],
        ["cw-grpo", "train", "scale=tiny", "a key='x y'"],
    ]
