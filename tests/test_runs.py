# SPDX-License-Identifier: Apache-2.0
"""Reading the metrics of runs, resumed and cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cw_grpo import run_config, runs


def write(run_dir: Path, attempt: int, steps: dict[int, float], tail: str = "") -> Path:
    path = run_dir / "metrics" / f"attempt-{attempt:03d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": s, "data": {"reward": r}}) + "\n" for s, r in steps.items()) + tail)
    return path


def test_what_verls_own_file_logger_writes(tmp_path, monkeypatch) -> None:
    from verl.utils.tracking import FileLogger

    path = runs.next_attempt_file(tmp_path)
    path.parent.mkdir()
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    logger = FileLogger("project", "experiment")
    logger.log({"reward": 0.25, "n": 3}, step=1)
    logger.log({"reward": 0.5}, step=2)
    logger.finish()
    frame = runs.load_metrics(tmp_path)
    assert frame["reward"].to_dict() == {1: 0.25, 2: 0.5}
    assert frame.loc[1, "n"] == 3


def test_a_resumed_attempt_replaces_what_came_after_its_checkpoint(tmp_path) -> None:
    write(tmp_path, 1, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5})
    write(tmp_path, 2, {3: 1.3, 4: 1.4})
    # Step 5 of the first attempt started from weights that the second attempt never had.
    assert runs.load_metrics(tmp_path)["reward"].to_dict() == {1: 0.1, 2: 0.2, 3: 1.3, 4: 1.4}


def test_an_attempt_that_died_before_its_first_step_changes_nothing(tmp_path) -> None:
    write(tmp_path, 1, {1: 0.1, 2: 0.2})
    write(tmp_path, 2, {})
    assert list(runs.load_metrics(tmp_path).index) == [1, 2]
    assert runs.next_attempt_file(tmp_path).name == "attempt-003.jsonl"


def test_copies_beside_the_attempts_are_not_attempts(tmp_path) -> None:
    write(tmp_path, 1, {1: 0.1, 2: 0.2})
    for name in ("attempt-001.bak.jsonl", "attempt-1 (copy).jsonl", "attempt-old.jsonl"):
        (tmp_path / "metrics" / name).write_text('{"step": 1, "data": {"reward": 9}}\n')
    assert runs.next_attempt_file(tmp_path).name == "attempt-002.jsonl"
    for place in (tmp_path, tmp_path / "metrics"):
        assert runs.load_metrics(place)["reward"].to_dict() == {1: 0.1, 2: 0.2}


def test_attempts_are_in_the_order_of_their_numbers(tmp_path) -> None:
    write(tmp_path, 999, {1: 0.1, 2: 0.2})
    write(tmp_path, 1000, {2: 1.2})
    assert runs.next_attempt_file(tmp_path).name == "attempt-1001.jsonl"
    assert runs.load_metrics(tmp_path)["reward"].to_dict() == {1: 0.1, 2: 1.2}


def test_validation_is_logged_apart_and_read_together(tmp_path) -> None:
    path = write(tmp_path, 1, {1: 0.1})
    with path.open("a") as file:
        file.write(json.dumps({"step": 1, "data": {"val/acc": 0.7}}) + "\n")
    frame = runs.load_metrics(tmp_path)
    assert frame.loc[1].to_dict() == {"reward": 0.1, "val/acc": 0.7}


def test_a_resumed_attempts_validation_at_the_checkpoint_does_not_replace_its_training(tmp_path) -> None:
    def log(attempt: int, *steps: tuple[int, dict]) -> None:
        lines = [json.dumps({"step": step, "data": data}) for step, data in steps]
        write(tmp_path, attempt, {}, tail="\n".join(lines) + "\n")

    def train(step: int, reward: float) -> tuple[int, dict]:
        return step, {"training/global_step": step, "reward": reward}

    log(1, (0, {"acc": 0.1}), train(1, 0.1), train(2, 0.2), train(3, 0.3))
    log(2, (2, {"acc": 0.2}), train(3, 0.4), train(4, 0.5))
    frame = runs.load_metrics(tmp_path)
    assert list(frame.index) == [0, 1, 2, 3, 4]
    assert frame["reward"].tolist()[1:] == [0.1, 0.2, 0.4, 0.5] and frame["acc"].dropna().to_dict() == {0: 0.1, 2: 0.2}


def test_a_last_line_that_was_cut_off_is_left_out_with_a_warning(tmp_path) -> None:
    write(tmp_path, 1, {1: 0.1, 2: 0.2}, tail='{"step":3,"data":{"rew')
    with pytest.warns(UserWarning, match=r"attempt-001.jsonl:3: the last line is cut off"):
        frame = runs.load_metrics(tmp_path)
    assert list(frame.index) == [1, 2]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"step": "1", "data": {}}', '{"step": 1}'])
def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path, line: str) -> None:
    write(tmp_path, 1, {1: 0.1}, tail=line + "\n" + '{"step":2,"data":{}}\n')
    with pytest.raises(ValueError, match=r"attempt-001.jsonl:2: "):
        runs.load_metrics(tmp_path)


def test_no_metrics_is_an_error_that_names_the_folder(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics in .*metrics"):
        runs.load_metrics(tmp_path)


def test_the_picture_is_drawn_whole_or_not_at_all(tmp_path) -> None:
    import pandas as pd
    from matplotlib import image

    from cw_grpo.plot import plot_run

    frame = pd.DataFrame({"critic/score/mean": [0.1, 0.5, 0.6], "actor/entropy": [1.0, 0.8, 0.5]}, index=[1, 2, 3])
    pixels = image.imread(plot_run(frame, tmp_path / "run.png", title="a run"))
    assert pixels.shape[0] > 300 and pixels.min() < pixels.max()
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]
    # A job without these metrics, and one of a single step, have pictures too.
    plot_run(frame[[]], tmp_path / "empty.png")
    plot_run(frame.iloc[:1], tmp_path / "one.png")


def test_a_file_of_verls_logger_wherever_it_lies_and_tensorboards(tmp_path, monkeypatch) -> None:
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "any" / "name.jsonl"))
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "board"))
    (tmp_path / "any").mkdir()
    tracking = Tracking("project", "experiment", default_backend=["file", "tensorboard"])
    for step in (1, 2):
        tracking.log(data={"actor/entropy": 0.5 / step, "training/global_step": step}, step=step)
    del tracking
    for place in ("any", "any/name.jsonl", "board"):
        metrics = runs.load_metrics(tmp_path / place)
        assert metrics.index.tolist() == [1, 2], place
        assert metrics["actor/entropy"].tolist() == pytest.approx([0.5, 0.25]), place


def log_to_tensorboard(directory: Path, monkeypatch, steps: dict[int, float]) -> None:
    """What verl's `tensorboard` logger writes in one start of a job."""
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("TENSORBOARD_DIR", str(directory))
    tracking = Tracking("project", "experiment", default_backend=["tensorboard"])
    for step, reward in steps.items():
        tracking.log(data={"reward": reward, "training/global_step": step}, step=step)
    tracking.logger["tensorboard"].finish()


def test_a_resumed_run_of_tensorboard_is_one_run(tmp_path, monkeypatch) -> None:
    log_to_tensorboard(tmp_path, monkeypatch, {1: 0.25, 2: 0.5, 3: 0.75})
    log_to_tensorboard(tmp_path, monkeypatch, {3: 1.0, 4: 2.0})
    assert runs.load_metrics(tmp_path)["reward"].to_dict() == {1: 0.25, 2: 0.5, 3: 1.0, 4: 2.0}


def test_two_runs_of_tensorboard_in_one_directory_are_rejected_and_can_be_named(tmp_path, monkeypatch) -> None:
    for reward in (0.25, 0.75):
        log_to_tensorboard(tmp_path, monkeypatch, {1: reward, 2: reward})
    first, second = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as error:
        runs.load_metrics(tmp_path)
    for part in (str(tmp_path), first.name, second.name, "several runs", "start at step 1", "TENSORBOARD_DIR"):
        assert part in str(error.value)
    rewards = {runs.load_metrics(file)["reward"].tolist()[0] for file in (first, second)}
    assert rewards == {0.25, 0.75}


def test_event_files_in_a_runs_directory_are_found(tmp_path, monkeypatch) -> None:
    log_to_tensorboard(tmp_path / "run/tensorboard", monkeypatch, {1: 0.5, 2: float("inf")})
    (tmp_path / "run/config.yaml").write_text("algorithm: {adv_estimator: cw_grpo}\n")
    for place in ("run", "run/tensorboard"):
        [source] = runs.find_metrics(tmp_path / place)
        assert run_config.method_of(run_config.read_config(source.directory)) == "cw_grpo"
    with pytest.warns(UserWarning, match="run: reward is not finite at step 2; skipped there"):
        assert runs.load_metrics(tmp_path / "run")["reward"].dropna().to_dict() == {1: 0.5}


def test_one_run_is_never_made_of_several(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"step": 1, "data": {"reward": 1.0}}\n')
    with pytest.raises(ValueError, match=r"holds 2 runs: name one, for instance .*one.jsonl"):
        runs.load_metrics(tmp_path)
    assert [source.path.name for source in runs.find_metrics(tmp_path)] == ["one.jsonl", "two.jsonl"]


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("grpo=run", ("grpo", "run")),
        ("run", ("", "run")),
        ("lr=1e-6", ("", "lr=1e-6")),  # a directory of that name
        ("outputs/lr=1e-6", ("", "outputs/lr=1e-6")),
        ("a/b=run", ("a/b", "run")),
        ("base=Qwen/Qwen2.5-Math-7B", ("base", "Qwen/Qwen2.5-Math-7B")),
        ("=run", ("", "run")),
    ],
)
def test_name_and_path_of_an_argument(tmp_path, monkeypatch, argument: str, named: tuple[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "lr=1e-6").mkdir()
    assert runs.split_name(argument) == named


def test_the_picture_and_the_report_have_one_style_and_the_picture_says_its_window(tmp_path, monkeypatch) -> None:
    """All pictures are saved by one function; its style is in force, and no other afterwards."""
    import matplotlib
    import pandas as pd
    from matplotlib.figure import Figure

    from cw_grpo import plot

    seen = {}
    save = Figure.savefig

    def look(figure, *args, **kwargs):
        seen["title"] = figure.get_suptitle()
        seen["spines"] = [axis.spines["top"].get_visible() for axis in figure.axes]
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", look)
    before = dict(matplotlib.rcParams)
    plot.plot_run(pd.DataFrame({"critic/score/mean": range(80)}, index=range(80)), tmp_path / "run.png", title="a run")
    assert seen == {"title": "a run (bold: moving average over 8 steps)", "spines": [False, False]}
    assert dict(matplotlib.rcParams) == before
