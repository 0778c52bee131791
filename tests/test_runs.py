"""Reading the metrics of runs, resumed and cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cw_grpo import runs


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
