"""The launcher without verl's trainer: what it makes, what it refuses, and that it leaves no process behind.

`tests/e2e` runs it with the trainer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from cw_grpo.job import launch
from cw_grpo.job.launch import Follower, LaunchError, RunFolder, check_machine, error_lines, make_plan, prepare, train
from cw_grpo.job.processes import MARKER, Job, start_marked

CLI = Path(sys.executable).with_name("cw-grpo")

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
    folder = tmp_path_factory.mktemp("ray")
    (folder / "driver.py").write_text(DRIVER)
    # Not below pytest's folder, whose path is too long for Ray's sockets.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cwg-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        job = Job(temporary)
        with (folder / "log").open("wb") as log:
            process = start_marked([sys.executable, str(folder / "driver.py"), temporary], job.marker, os.environ, log)
            wait_for(lambda: "at work" in (folder / "log").read_text())
            yield job, process
            job.stop()
            process.wait(10)


def test_nothing_of_a_ray_cluster_survives_its_stop(ray_job) -> None:
    job, process = ray_job
    names = {p.name() for p in job.look()}
    # Ray's agents overwrite the environment that others see; they belong to the job all the same.
    assert {"raylet", "gcs_server", "sleep", "ray::RuntimeEnvAgent"} <= names
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: "of another job"})
    found = job.look()
    assert other.pid not in {p.pid for p in found} and os.getpid() not in {p.pid for p in found}
    assert job.stop() == len(found) or job.look() == []
    process.wait(10)
    assert not [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert other.poll() is None
    other.kill()
    other.wait()


def test_nothing_of_a_ray_cluster_survives_when_its_driver_is_killed(ray_job) -> None:
    job, process = ray_job
    found = job.look()
    process.kill()
    process.wait(10)
    job.stop()
    assert not [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A job for the launcher that is not verl's: the primary config of a `main_ppo` made below."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "job.yaml").write_text(
        textwrap.dedent("""
        trainer: {total_training_steps: 3, resume_mode: auto, default_local_dir: x, logger: [console, file]}
        launcher: {start_limit_s: 60, private_ray: false}
        lr: 1
        """)
    )
    return folder


def fake_verl(tmp_path: Path, monkeypatch, body: str) -> None:
    """Stand in for `python -m verl.trainer.main_ppo`, whose start takes half a minute, where only its end matters."""
    package = tmp_path / "fake" / "verl" / "trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    head = """
import json, os, signal, subprocess, sys, time

def log(step, **data):
    data |= {"training/global_step": step, "timing_s/step": 0.1}
    with open(os.environ["VERL_FILE_LOGGER_PATH"], "a") as file:
        file.write(json.dumps({"step": step, "data": data}) + "\\n")
"""
    (package / "main_ppo.py").write_text(head + textwrap.dedent(body))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))


def run(recipe: Path, tmp_path: Path, *overrides: str, **options) -> tuple[int, list[str]]:
    lines: list[str] = []
    status = train(
        overrides, config_dir=recipe, config_name="job", home=tmp_path / "home", echo=lines.append, **options
    )
    return status, lines


def test_steps_are_shown_and_drawn_and_the_status_is_the_jobs(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(
        tmp_path,
        monkeypatch,
        """
        print("Started a local Ray instance.")
        with open(os.environ["VERL_FILE_LOGGER_PATH"], "a") as file:  # before training
            file.write(json.dumps({"step": 0, "data": {"val-core/math500/acc/mean@4": 0.5}}) + "\\n")
        for step in (1, 2, 3):
            log(step, **{"critic/score/mean": step / 4, "actor/entropy": 1 / step})
        """,
    )
    status, lines = run(recipe, tmp_path)
    text = "\n".join(lines)
    assert status == 0
    assert "Ray is up" in text
    assert "step 0/3  math500 0.500" in text
    assert "step 2/3  reward 0.500  entropy 0.500  0.1 s" in text
    assert "reward            first step 0.250   last step 0.750" in text
    assert (tmp_path / "home" / "runs" / "job" / "run.png").stat().st_size > 10_000


def test_a_metric_that_is_no_number_does_not_end_the_run(recipe, tmp_path, monkeypatch) -> None:
    # verl's file logger writes a NaN as null.
    fake_verl(tmp_path, monkeypatch, """
        for step in (1, 2, 3):
            log(step, **{"critic/score/mean": 0.5, "actor/entropy": None if step == 2 else 0.25,
                         "val-core/math500/acc/mean@4": None})
    """)  # fmt: skip
    status, lines = run(recipe, tmp_path)
    assert status == 0
    text = "\n".join(lines)
    assert "step 2/3  reward 0.500  entropy -  math500 -  0.1 s" in text and "step 3/3" in text


@pytest.mark.parametrize("logger", ["console", "[console,wandb]"])
def test_a_run_whose_metrics_nobody_could_read_is_refused(recipe, tmp_path, logger: str) -> None:
    with pytest.raises(LaunchError, match="has no `file`.*trainer.logger="):
        run(recipe, tmp_path, f"trainer.logger={logger}")


def test_a_failure_has_the_jobs_status_and_its_last_errors(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(
        tmp_path,
        monkeypatch,
        """
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        print("\\x1b[36m(TaskRunner pid=12)\\x1b[0m ValueError: no such optimizer")
        sys.exit(3)
        """,
    )
    before = {p.pid for p in psutil.process_iter() if p.name() == "sleep"}
    status, lines = run(recipe, tmp_path)
    assert status == 3
    assert "the job ended with exit status 3:" in lines and "  ValueError: no such optimizer" in lines
    assert lines[-1] == f"all of verl's output: {tmp_path / 'home' / 'runs' / 'job' / 'verl.log'}"
    assert not {p.pid for p in psutil.process_iter() if p.name() == "sleep"} - before


def test_a_job_that_never_starts_is_stopped_with_the_likely_reason(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(tmp_path, monkeypatch, "print('Started a local Ray instance.', flush=True); time.sleep(600)")
    status, lines = run(recipe, tmp_path, "launcher.start_limit_s=4", "+launcher.silence_notice_s=1")
    assert status == 1
    text = "\n".join(lines)
    assert "no sign of life from verl for" in text
    assert "stopped: no step after 4 s; it has yet to say that data is loaded. Ray waits in silence" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_job_and_all_its_processes(recipe, tmp_path, monkeypatch, number) -> None:
    fake_verl(
        tmp_path,
        monkeypatch,
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "601"], start_new_session=True)
        log(1, **{"critic/score/mean": 0.5})
        time.sleep(600)
        """,
    )
    command = [CLI, "train", f"--config-path={recipe}", "--config-name=job", f"--home={tmp_path / 'home'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "step 1/3" in line:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; 2 processes ended" in output
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "601"]]


def test_the_job_does_not_outlive_a_launcher_that_was_killed(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(tmp_path, monkeypatch, "log(1); time.sleep(600)")
    command = [CLI, "train", f"--config-path={recipe}", "--config-name=job", f"--home={tmp_path / 'home'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "step 1/3" in line:
            break
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    child.wait(10)


def test_a_second_launcher_is_kept_out(recipe, tmp_path) -> None:
    folder = RunFolder(tmp_path / "home" / "runs" / "job")
    with folder.lock(), pytest.raises(LaunchError, match="another run is writing to .*choose another --run-dir"):
        run(recipe, tmp_path)


def test_fresh_does_not_take_the_folder_from_a_run_that_goes_on(recipe, tmp_path) -> None:
    folder = RunFolder(tmp_path / "home" / "runs" / "job")
    with folder.lock():
        folder.log.write_text("going on")
        with pytest.raises(LaunchError, match="another run is writing to"):
            run(recipe, tmp_path, fresh=True)
        assert folder.log.read_text() == "going on"


def test_a_note_of_the_last_checkpoint_that_was_cut_off_is_named(recipe, tmp_path) -> None:
    checkpoint(tmp_path, "")
    with pytest.raises(LaunchError, match="latest_checkpointed_iteration.txt holds no step number"):
        run(recipe, tmp_path)


def checkpoint(tmp_path: Path, step: int | str) -> None:
    folder = tmp_path / "home" / "runs" / "job" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


STEPS = """
start = 2 if "resumed" in os.environ else 1
for step in range(start, 4):
    log(step, **{"critic/score/mean": step / 4})
    if step == 2 and start == 1:
        sys.exit(1)
"""


def test_the_same_command_goes_on_and_keeps_the_earlier_steps(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(tmp_path, monkeypatch, STEPS)
    assert run(recipe, tmp_path)[0] == 1
    checkpoint(tmp_path, 1)
    monkeypatch.setenv("resumed", "1")
    status, lines = run(recipe, tmp_path)
    assert status == 0 and "going on from the checkpoint of step 1" in lines
    run_dir = tmp_path / "home" / "runs" / "job"
    assert list(launch.runs.load_metrics(run_dir).index) == [1, 2, 3]
    assert [path.name for path in launch.runs.attempt_files(run_dir)] == ["attempt-001.jsonl", "attempt-002.jsonl"]


def test_a_run_does_not_go_on_with_other_settings(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(tmp_path, monkeypatch, STEPS)
    run(recipe, tmp_path)
    for with_checkpoint in (False, True):
        if with_checkpoint:
            checkpoint(tmp_path, 1)
        with pytest.raises(LaunchError, match=r"other settings:\n  lr: 1 -> 2\n.*--fresh"):
            run(recipe, tmp_path, "lr=2")
    monkeypatch.setenv("resumed", "1")
    # How long it runs is no such setting.
    assert run(recipe, tmp_path, "trainer.total_training_steps=4")[0] == 0


def test_a_finished_run_says_so_and_fresh_keeps_it(recipe, tmp_path, monkeypatch) -> None:
    fake_verl(tmp_path, monkeypatch, "[log(s, **{'critic/score/mean': 0.5}) for s in (1, 2, 3)]")
    run(recipe, tmp_path)
    checkpoint(tmp_path, 3)
    status, lines = run(recipe, tmp_path)
    assert status == 0
    assert lines[0] == "this run is finished: 3 of 3 steps" and "--fresh" in lines[-1]
    assert len(launch.runs.attempt_files(tmp_path / "home" / "runs" / "job")) == 1

    status, lines = run(recipe, tmp_path, fresh=True)
    assert status == 0 and lines[0] == f"the earlier run is kept in {tmp_path / 'home' / 'runs' / 'job.1'}"
    assert len(launch.runs.attempt_files(tmp_path / "home" / "runs" / "job.1")) == 1
    assert not (tmp_path / "home" / "runs" / "job" / "checkpoints").exists()


def test_the_job_has_a_ray_cluster_of_its_own_and_the_users_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    plan = make_plan(["scale=tiny", "cluster=cpu"])
    attempt = launch.Attempt(plan, RunFolder(tmp_path), [], 100, print)
    env = attempt.environment()
    attempt.temporary.rmdir()
    assert "RAY_ADDRESS" not in env and os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert env["WANDB_API_KEY"] == "a key"
    assert (env["VERL_PLATFORM"], env["VERL_USE_EXTERNAL_MODULES"]) == ("cpu", "cw_grpo.cpu")
    assert "++ray_kwargs.ray_init.address=local" in attempt.command()
    assert attempt.command()[-2:] == ["scale=tiny", "cluster=cpu"]
    # Ray's sockets lie below it, and their paths may have about 100 characters.
    assert len(str(attempt.temporary)) < 30


def test_prepare_makes_what_is_missing_once_and_leaves_the_users_own_alone(tmp_path) -> None:
    own = ["actor_rollout_ref.model.path=/my/model", "prepare.data.train.size=5", "prepare.data.val.size=3"]
    plan = make_plan(["scale=tiny", *own])
    lines: list[str] = []
    made = dict(override.split("=", 1) for override in prepare(plan, tmp_path, tmp_path / "run", lines.append))
    record = {"++algorithm.cw_grpo.record": f"'{tmp_path}/run/record'", "++algorithm.cw_grpo.record_every": "5"}
    assert record.items() <= made.items()
    assert set(made) - set(record) == {"reward.custom_reward_function.path", "data.train_files", "data.val_files"}
    assert len(lines) == 2 and lines[0].startswith("data: 5 questions of chain_sum in ")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert len(files) == 2
    assert prepare(plan, tmp_path, tmp_path / "run", lines.append) == [f"{key}={value}" for key, value in made.items()]
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    # Other settings are another file.
    prepare(make_plan(["scale=tiny", *own, "prepare.data.train.seed=7"]), tmp_path, tmp_path / "run", lines.append)
    assert len(list((tmp_path / "data").iterdir())) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+prepare.models=1", "prepare.models is not known"),
        ("prepare.reward=../nothing.py", "prepare.reward: there is no .*nothing.py"),
        ("prepare.model.name=huge", "unknown model 'huge'; there are: smollm2, tiny"),
        ("prepare.data.train.task=sums", "no task 'sums'"),
        ("prepare.prompt=nothing.yaml", "nothing.yaml"),
    ],
)
def test_what_cannot_be_prepared_is_named(tmp_path, override: str, message: str) -> None:
    own = [] if "model.name" in override else ["actor_rollout_ref.model.path=/my/model"]
    with pytest.raises(LaunchError, match=message):
        prepare(make_plan(["scale=tiny", *own, override]), tmp_path, tmp_path / "run", print)


def test_what_the_machine_lacks_is_named_before_anything_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CW_GRPO_HOME", str(tmp_path))
    plan = make_plan(["scale=qwen7b", "cluster=1node", "method=grpo"])

    def check(**changes) -> None:
        config = plan.config.copy()
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
        check_machine(replace(plan, config=config))

    actor, model = "actor_rollout_ref.actor.", "actor_rollout_ref.model."
    with pytest.raises(LaunchError, match=r"trainer\.n_gpus_per_node=48, and torch sees \d+ GPUs"):
        check(**{"trainer.n_gpus_per_node": 48})
    with pytest.raises(LaunchError, match="8 data-parallel ranks.*ulysses_sequence_parallel_size of 2, 4 or 8"):
        check(**{"trainer.n_gpus_per_node": 8, "parallel.ulysses": 1})
    with pytest.raises(LaunchError, match="on this machine alone.*as cluster=nnodes does"):
        check(**{"trainer.nnodes": 2})
    here = {"trainer.device": "cpu"}
    with pytest.raises(LaunchError, match=r'vllm is not installed here: pip install "\.\[vllm\]"'):
        check(**here)
    here["actor_rollout_ref.rollout.name"] = "transformers"
    with pytest.raises(LaunchError, match=r'flash-attn, which is not installed here: pip install "verl\[fsdp\]"'):
        check(**here)
    here[model + "override_config.attn_implementation"] = "sdpa"
    megatron = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "context_parallel_size": 1}
    with pytest.raises(LaunchError, match=r'pip install "verl\[megatron\]"'):
        check(**here, **{actor + "strategy": "megatron", actor + "megatron": megatron})
    here[model + "path"] = str(tmp_path / "model")
    with pytest.raises(LaunchError, match=f"there is no folder {tmp_path}/model"):
        check(**here)
    (tmp_path / "model").mkdir()
    with pytest.raises(LaunchError, match=r"model has no config\.json: not a model"):
        check(**here)
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(LaunchError, match="no .*open-rs.parquet; `cw-grpo data paper open-rs --out .*` makes it"):
        check(**here)
    (tmp_path / "data").mkdir()
    for name in ("open-rs", "aime24", "amc23", "math500", "minerva"):
        (tmp_path / "data" / f"{name}.parquet").touch()
    with pytest.raises(LaunchError, match=r"data\.val_files: there is no .*olympiadbench"):
        check(**here)
    (tmp_path / "data/olympiadbench.parquet").touch()
    check(**here)
    with pytest.raises(LaunchError, match="no .*mine.parquet; set data.train_files"):
        check(**here, **{"data.train_files": "mine.parquet"})
    check(**here, **{"data.train_files": "hdfs://some/where.parquet"})


def test_a_users_own_file_is_looked_at_where_one_would_be_made(tmp_path) -> None:
    check_machine(make_plan(["scale=tiny", "cluster=cpu"]))
    with pytest.raises(LaunchError, match="no .*mine.parquet; set data.val_files"):
        check_machine(make_plan(["scale=tiny", "cluster=cpu", "data.val_files=mine.parquet"]))
    with pytest.raises(LaunchError, match=f"model.path: there is no folder {tmp_path}/mine"):
        check_machine(make_plan(["scale=tiny", "cluster=cpu", f"actor_rollout_ref.model.path={tmp_path}/mine"]))


def test_a_model_of_the_hub_that_cannot_be_had_is_named_with_a_way(tmp_path) -> None:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    code = """
from omegaconf import OmegaConf
from cw_grpo.job.preflight import missing_model
path = "Qwen/Qwen2.5-Math-7B-Instruct"
print(missing_model(OmegaConf.create({"actor_rollout_ref": {"model": {"path": path}}}), set()))
"""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (
        "Qwen/Qwen2.5-Math-7B-Instruct is neither a folder here nor to be had from the Hugging Face hub" in done.stdout
    )
    assert "--local-dir FOLDER" in done.stdout


def test_nnodes_joins_a_cluster_and_hands_its_environment_to_the_nodes(tmp_path, monkeypatch) -> None:
    with pytest.raises(LaunchError, match="Environment variable 'NNODES' not found"):
        make_plan(["scale=qwen7b", "cluster=nnodes"])
    for name, value in {"RAY_ADDRESS": "10.0.0.1:6379", "NNODES": "4", "CW_GRPO_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    attempt = launch.Attempt(make_plan(["scale=qwen7b", "cluster=nnodes"]), RunFolder(tmp_path), [], 100, print)
    attempt.temporary.rmdir()
    assert attempt.environment()["RAY_ADDRESS"] == "10.0.0.1:6379"
    command = attempt.command()
    assert "++ray_kwargs.ray_init.address=auto" in command
    assert not [part for part in command if "_temp_dir" in part]
    handed = "++ray_kwargs.ray_init.runtime_env.env_vars."
    given = dict(part.removeprefix(handed).split("=", 1) for part in command if part.startswith(handed))
    assert given == {
        "NNODES": "'4'",
        "GPUS_PER_NODE": "'4'",
        "CW_GRPO_HOME": f"'{tmp_path}'",
        "VERL_FILE_LOGGER_PATH": f"'{attempt.metrics}'",
    }


def test_the_command_works_from_any_folder_and_names_a_mistake(tmp_path) -> None:
    done = subprocess.run([CLI, "train", "method=grop"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Could not find 'method/grop'" in done.stderr and "clip_cov" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_errors_are_picked_from_a_log_of_ray() -> None:
    log = (
        "INFO fine\nError executing job with overrides: ['a=1']\n"
        "\x1b[36m(WorkerDict pid=7)\x1b[0m Traceback (most recent call last):\n"
        "\x1b[36m(WorkerDict pid=7)\x1b[0m ValueError: first\nValueError: first\n"
        "ray.exceptions.RayTaskError(ValueError): ray::run() (pid=7)\nsome Error in prose\n"
        "torch.OutOfMemoryError: last\n"
    )
    assert error_lines(log) == [
        "ValueError: first",
        "ray.exceptions.RayTaskError(ValueError): ray::run() (pid=7)",
        "torch.OutOfMemoryError: last",
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


def test_paths_with_odd_characters_reach_hydra_whole(tmp_path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    path = tmp_path / "it's a, folder={x}"
    (override,) = OverridesParser.create().parse_overrides([f"data.train_files={launch._quote(path)}"])
    assert override.value() == str(path)
    assert OmegaConf.create({"a": override.value()}).a == str(path)
