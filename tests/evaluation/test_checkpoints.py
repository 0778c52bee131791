# SPDX-License-Identifier: Apache-2.0
"""Models and checkpoints: what an argument names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cw_grpo.evaluation import checkpoints


def test_what_an_argument_names(run_folder: Path, tmp_path: Path) -> None:
    actor = run_folder / "checkpoints/global_step_50/actor"
    last = run_folder / "checkpoints/global_step_100/actor"
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for argument, source in {
        str(run_folder): checkpoints.Source("cw_grpo", 100, last, run_folder),
        str(run_folder / "checkpoints"): checkpoints.Source("cw_grpo", 100, last, run_folder),
        f"{run_folder}@50": checkpoints.Source("cw_grpo", 50, actor, run_folder),
        f"mine={run_folder}@50": checkpoints.Source("mine", 50, actor, run_folder),
        str(actor.parent): checkpoints.Source("cw_grpo", 50, actor, run_folder),
        f"mine={actor}": checkpoints.Source("mine", 50, actor, run_folder),
        str(base): checkpoints.Source("base", None, base, None),
    }.items():
        assert checkpoints.parse(argument) == source
    assert [checkpoints.parse(a).label for a in (str(base), f"{run_folder}@50")] == ["base", "cw_grpo@50"]


def test_a_run_without_its_configuration_is_named_by_its_folder(run_folder: Path) -> None:
    (run_folder / "config.yaml").unlink()
    assert checkpoints.parse(str(run_folder)).label == "my-run@100"


def test_models_that_are_not_there(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "cut-off").mkdir()
    (tmp_path / "cut-off/latest_checkpointed_iteration.txt").touch()
    (run_folder / "checkpoints/global_step_50_old/actor").mkdir(parents=True)
    (run_folder / "checkpoints/global_step_20").mkdir()  # its weights are not kept
    for argument, message in {
        f"{tmp_path}/none": "none: there is no such directory",
        "./none": "there is no such directory",
        "outputs/lr=1e-6": "outputs/lr=1e-6: there is no such directory",
        "nobody/nothing": "no such directory, and no such model on the Hugging Face hub or in its cache",
        f"{run_folder}@20": "no checkpoint of step 20; it has 50, 100",
        str(tmp_path / "empty"): "neither a model in Hugging Face's format .* nor a checkpoint of verl",
        f"a/b={run_folder}": "'a/b' cannot name a model's directory",
        f"..={run_folder}": "'..' cannot name a model's directory",
        f"verl.log={run_folder}": "'verl.log' cannot name a model's directory",
        f"{tmp_path}/model@50": "model is a model, which has no checkpoint of step 50",
        str(tmp_path / "cut-off"): "latest_checkpointed_iteration.txt holds no step number: name one with .*@STEP",
    }.items():
        with pytest.raises(ValueError, match=message):
            checkpoints.parse(argument)


def test_weights_that_are_not_there(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights that can be merged .*save_contents must have `model` or"):
        checkpoints.servable(checkpoints.parse(str(run_folder)), {}, tmp_path / "log")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    with pytest.raises(ValueError, match="base has no weights"):
        checkpoints.servable(checkpoints.parse(str(tmp_path / "base")), {}, tmp_path / "log")


def test_a_checkpoint_that_has_the_weights_in_hugging_faces_format_is_not_merged(run_folder: Path) -> None:
    saved = run_folder / "checkpoints/global_step_100/actor/huggingface"
    saved.mkdir()
    (saved / "model.safetensors").write_bytes(b"1")
    source = checkpoints.parse(str(run_folder))
    model = checkpoints.servable(source, {}, run_folder / "log")
    assert model.path == saved
    (saved / "model.safetensors").write_bytes(b"2")
    assert checkpoints.servable(source, {}, run_folder / "log").sha256 != model.sha256
