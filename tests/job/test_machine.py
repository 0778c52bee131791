# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks for a job on GPUs is one line each, before anything starts.

The processes are real: this machine's torch, a package that does not load, the disk below the test. GPUs are numbers.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from jobs import cached_plan
from omegaconf import DictConfig

from cw_grpo.job import machine
from cw_grpo.job.footprint import ModelSize, gpu_memory
from cw_grpo.job.launch import train
from cw_grpo.job.machine import Gpu
from cw_grpo.job.plan import LaunchError, make_plan

QWEN_1_5B = ModelSize(1_777_088_000, 28, 1536, 8960, 151_936, 131_072)
QWEN_7B = ModelSize(7_615_616_512, 28, 3584, 18944, 152_064, 4096)
H100 = Gpu("NVIDIA H100 80GB HBM3", id="0", free=84_000_000_000, total=85_000_000_000)
UTILIZATION = "actor_rollout_ref.rollout.gpu_memory_utilization"
FSDP = "actor_rollout_ref.actor.fsdp_config"
DECLARE = "ray_kwargs.ray_init.num_cpus"
UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def job(*overrides: str) -> DictConfig:
    return cached_plan("scale=qwen1_5b", "cluster=1gpu", *overrides).config


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a package that this and other processes find; ``files`` are its files' contents."""

    def make(name: str, **files: str) -> None:
        directory = tmp_path / "packages" / name
        directory.mkdir(parents=True)
        for file, text in files.items():
            (directory / file.replace("__dot__", ".")).write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "packages")
        path = os.pathsep.join([str(tmp_path / "packages"), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path)

    return make


@without_gpu
@pytest.mark.parametrize("setting", [(), ("+launcher.env.CUDA_VISIBLE_DEVICES=3",)])
def test_a_machine_without_gpus(monkeypatch, setting: tuple[str, ...]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4" if setting else "3")
    line = machine.missing_gpus(job(*setting))
    assert line.startswith("trainer.n_gpus_per_node=1, but torch sees 0 GPUs here")
    assert ("is built without CUDA" in line) == (torch.version.cuda is None)
    assert "(CUDA_VISIBLE_DEVICES=3)" in line and "use cluster=cpu" in line and "\n" not in line


@without_gpu
def test_gpus_that_torch_cannot_use(stand_in) -> None:
    """The driver's tools may count GPUs that torch then rejects: here, this machine's torch rejects one."""
    stand_in("sitecustomize", **{"__init__.py": "import torch; torch.cuda.device_count = lambda: 1"})
    line = machine.missing_gpus(job())
    reason = "Torch not compiled with CUDA enabled" if torch.version.cuda is None else "NVIDIA"
    assert line.startswith(f"torch {torch.__version__}") and "cannot use the GPUs here" in line
    assert reason in line and "Install a driver" in line and "\n" not in line


def test_gpus_have_the_names_by_which_the_job_chooses_them(stand_in) -> None:
    code = """
import torch
torch.cuda.device_count, torch.cuda.get_device_name = lambda: 2, lambda i: "NVIDIA L4"
torch.zeros, torch.cuda.mem_get_info = lambda *_, **__: None, lambda i: (23, 24)
"""
    stand_in("sitecustomize", **{"__init__.py": code})
    chosen = "+launcher.env.CUDA_VISIBLE_DEVICES='5, GPU-0a'"
    assert machine.find_gpus(job(chosen)) == [Gpu("NVIDIA L4", id, free=23, total=24) for id in ("5", "GPU-0a")]
    assert [gpu.id for gpu in machine.find_gpus(job("+launcher.env.CUDA_VISIBLE_DEVICES=null"))] == ["0", "1"]


def test_cpus_that_ray_reserves() -> None:
    """As `docs/gpus.md` lists them. Ray's own count of this machine is taken, or what the job declares."""
    clusters = {"1gpu": 6, "1node": 22, "1node_h200": 22, "1node8": 34}
    assert {name: machine.needed_cpus(job(f"cluster={name}")) for name in clusters} == clusters
    assert machine.missing_cpus(job(f"{DECLARE}=6")) is None
    line = machine.missing_cpus(job(f"{DECLARE}=5"))
    assert "verl reserves 6 CPUs for this job" in line and f"{DECLARE} is 5" in line and f"{UNITS}=1" in line
    more = machine.missing_cpus(job(f"{UNITS}={10 * os.cpu_count()}"))
    assert re.search(r"but Ray counts \d+\.", more)


def test_separate_rollout_servers_need_cpus_too() -> None:
    separate = ("trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1")
    assert machine.needed_cpus(job(*separate, "actor_rollout_ref.rollout.n_gpus_per_node=2")) == 6 + 2 * 2
    assert machine.needed_cpus(job("trainer.use_v1=false")) == 4


@without_gpu
@pytest.mark.parametrize(
    ("settings", "node", "cpus"),
    [
        (
            ("trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1"),
            "actor_rollout_ref.rollout",
            2,
        ),
        (("reward.reward_model.enable_resource_pool=true", "reward.reward_model.nnodes=1"), "reward.reward_model", 3),
        (("distillation.enabled=true", "distillation.nnodes=1"), "distillation", 3),
    ],
)
def test_gpus_of_other_pools_are_counted(settings: tuple[str, ...], node: str, cpus: int) -> None:
    config = job(*settings, f"{node}.n_gpus_per_node=2")
    assert machine.gpu_pools(config) == {"trainer": 1, node: 2}
    assert f"n_gpus_per_node=1 and 2 of {node} (nnodes x n_gpus_per_node), but" in machine.missing_gpus(config)
    assert machine.needed_cpus(config) == 6 + 2 * cpus


def packages(*overrides: str) -> list[str]:
    return list(machine.missing_packages(job(*overrides)))


NO_ROLLOUT = "actor_rollout_ref.rollout.name=transformers"


def test_vllm_that_does_not_load(stand_in) -> None:
    """As one built for another CUDA: the extension is there, and the linker rejects it. Its own import only warns."""
    stand_in("vllm", **{"__init__.py": "", "_C.abi3.so": "not an ELF file"})
    (line,) = packages("attention=sdpa")
    assert line.startswith("vllm is installed but does not load (ImportError:") and "_C.abi3.so" in line
    assert 'pip install ".[vllm]"' in line


def test_flash_attn_that_does_not_load(stand_in) -> None:
    stand_in("flash_attn", **{"__init__.py": "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c104')"})
    (line,) = packages(NO_ROLLOUT)
    assert "flash-attn is installed but does not load (ImportError: flash_attn_2_cuda.so: undefined symbol" in line
    assert "--no-build-isolation" in line and "attention=sdpa" in line


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_the_package_kernels_is_not_flash_attn(stand_in) -> None:
    """transformers takes its attention from it; verl's cross entropy would need more memory than computed."""
    stand_in("kernels", **{"__init__.py": ""})
    (line,) = packages(NO_ROLLOUT)
    assert "needs flash-attn, which is not installed here" in line and line.endswith("or set attention=sdpa")
    assert packages(NO_ROLLOUT, "attention=sdpa") == []
    unset = "actor_rollout_ref.actor.ulysses_sequence_parallel_size=null"
    assert packages(NO_ROLLOUT, unset) == [line]
    for shared in ("cluster=1node", f"{FSDP}.ulysses_sequence_parallel_size=2"):
        (line,) = packages(NO_ROLLOUT, shared)
        assert line.endswith("or set attention=sdpa parallel.ulysses=1")


def test_optional_flash_attn_is_taken_if_it_is_there(stand_in) -> None:
    plan = make_plan(["scale=smollm2", "cluster=1gpu"])
    assert machine.lacks_optional_flash_attn(plan) == (find_spec("flash_attn") is None)
    assert not machine.lacks_optional_flash_attn(make_plan(["scale=smollm2", "cluster=1node"]))
    assert not machine.lacks_optional_flash_attn(make_plan(["cluster=1gpu", "attention=flash_attn"]))
    stand_in("flash_attn", **{"__init__.py": ""})
    assert not machine.lacks_optional_flash_attn(plan)


@without_gpu
def test_a_job_for_one_gpu_names_all_that_this_machine_lacks(tmp_path, caplog) -> None:
    caplog.set_level("INFO", "cw_grpo")
    with pytest.raises(LaunchError) as caught:
        train(["scale=smollm2", "cluster=1gpu", f"{DECLARE}=1"], home=tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 problems:"
    assert [
        any(text in line for line in lines) for text in ("torch sees 0 GPUs", "6 CPUs", "vllm is not installed")
    ] == [True] * 3
    assert any("flash-attn is not installed: attention=sdpa" in message for message in caplog.messages)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_two_checkpoints(tmp_path) -> None:
    """Of the disk below the test, whatever it has."""
    free = shutil.disk_usage(tmp_path).free
    checkpoints, config = tmp_path / "runs" / "a" / "checkpoints", job()
    fits = replace(QWEN_1_5B, parameters=free // 12 // 4)
    huge = replace(QWEN_1_5B, parameters=free // 12)
    assert machine.missing_disk(config, fits, checkpoints) is None
    line = machine.missing_disk(config, huge, checkpoints)
    assert re.match(r"a checkpoint has \d+ GB, and 2 lie on the disk at once", line)
    assert f"but {tmp_path} has" in line and "--run-dir" in line and "trainer.save_freq=-1" in line
    assert "beside that of" not in line
    assert machine.missing_disk(job("trainer.save_freq=-1"), huge, checkpoints) is None


def memory_problems(*overrides: str, gpus: Sequence[Gpu] = (H100,), size: ModelSize = QWEN_1_5B) -> list[str]:
    config = job(*overrides)
    return list(machine.memory_problems(config, gpu_memory(size, config), list(gpus)))


def test_a_gpu_too_small_for_an_update() -> None:
    """Only what is not on the GPU in an update helps."""
    assert memory_problems() == []
    (line,) = memory_problems(gpus=[Gpu("NVIDIA L4", "0", free=23_000_000_000, total=24_000_000_000)])
    assert "parameters, gradients and Adam alone need 28 GB per GPU in an update" in line and "NVIDIA L4 has 24" in line
    assert "optimizer_offload" not in line and "offload_policy=true" in line
    (line,) = memory_problems(f"{FSDP}.optimizer_offload=true", f"{FSDP}.param_offload=true", size=QWEN_7B)
    assert "alone need 122 GB per GPU in an update" in line
    assert memory_problems(f"{FSDP}.offload_policy=true", size=QWEN_7B) == []
    assert memory_problems("actor_rollout_ref.model.lora_rank=32", size=QWEN_7B) == []
    for other in ("lora.rank=32", "lora_adapter_path=somewhere"):  # verl's FSDP trains the whole model with these
        assert len(memory_problems(f"actor_rollout_ref.model.{other}", size=QWEN_7B)) == 1


def test_a_rollout_that_does_not_fit_beside_the_trainer() -> None:
    (line,) = memory_problems(f"{UTILIZATION}=0.8")
    assert "gpu_memory_utilization to 0.74 or less" in line
    assert f"{FSDP}.optimizer_offload=true (14 GB less)" in line and f"{FSDP}.param_offload=true (7 GB less)" in line
    (line,) = memory_problems(f"{UTILIZATION}=0.9")  # 13 GB too much: one of them is not enough
    assert "optimizer_offload=true" in line and "param_offload" not in line
    assert memory_problems(f"{UTILIZATION}=0.74") == []
    assert memory_problems(f"{UTILIZATION}=0.8", f"{FSDP}.optimizer_offload=true") == []
    (line,) = memory_problems(f"{UTILIZATION}=0.95", f"{FSDP}.optimizer_offload=true")
    assert "to 0.91 or less" in line and "optimizer_offload=true" not in line and "param_offload=true" in line
    assert memory_problems(f"{UTILIZATION}=0.95", f"{FSDP}.optimizer_offload=true", f"{FSDP}.param_offload=true") == []


@pytest.mark.parametrize(
    ("busy", "message"),
    [
        ((4, 5, 6, 7), None),
        ((0, 2), "6 of the 8 visible ones have room: set CUDA_VISIBLE_DEVICES=1,3,4,5"),
        ((0, 1, 2, 3, 4), "3 of the 8 visible ones have room: end your processes on the others"),
    ],
)
def test_gpus_that_other_processes_hold(busy: tuple[int, ...], message: str | None) -> None:
    """A job of four takes the first four of eight."""
    gpus = [replace(H100, id=str(i), free=30_000_000_000 if i in busy else H100.free) for i in range(8)]
    config = job("cluster=1node")
    for memory, needed in ((gpu_memory(QWEN_1_5B, config), 48), (None, 42)):
        line = machine.busy_gpus(config, memory, gpus)
        assert (line is None) == (message is None)
        if message is not None:
            begin = f"GPU {busy[0]} (NVIDIA H100 80GB HBM3) has 30 of 85 GB free, and the job needs {needed}"
            assert line.startswith(begin)
            assert "It takes the first 4 visible GPUs" in line and message in line
            assert "CUDA_VISIBLE_DEVICES" in line


def test_what_the_trainer_needs_is_asked_of_its_own_gpus_alone() -> None:
    node = "reward.reward_model"
    pool = (f"{node}.enable=true", f"{node}.enable_resource_pool=true", f"{node}.nnodes=1", f"{node}.n_gpus_per_node=1")
    config = job("cluster=1gpu", *pool, f"{UTILIZATION}=0.3")
    memory = gpu_memory(QWEN_1_5B, config)
    small, busy = Gpu("NVIDIA L4", "1", free=23_000_000_000, total=24_000_000_000), replace(H100, free=40_000_000_000)
    assert list(machine.memory_problems(config, memory, [H100, small])) == []
    assert list(machine.memory_notes(config, QWEN_1_5B, [H100, small])) == []
    assert machine.busy_gpus(config, memory, [H100, busy]) is None
    assert machine.busy_gpus(config, memory, [busy, H100]) is not None


def test_a_setting_that_is_not_counted_is_said() -> None:
    (note,) = machine.memory_notes(job("actor_rollout_ref.actor.optim.optimizer=AdamW8bit"), QWEN_7B, [H100])
    assert "GPU memory is not checked" in note and "actor_rollout_ref.actor.optim.optimizer=AdamW8bit" in note


def test_what_does_not_fit_at_full_length_is_said() -> None:
    group = job("rows_per_micro_batch=12")
    update, old_log_probs = machine.memory_notes(group, QWEN_1_5B, [H100])
    assert "an update with responses of full length needs 93 GB" in update
    assert "lower actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu" in update
    assert "the pass for old log-probs" in old_log_probs
    assert "lower actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu" in old_log_probs
    assert list(machine.memory_notes(job(), QWEN_1_5B, [H100])) == []
    bypassed = job("rows_per_micro_batch=12", "algorithm.rollout_correction.bypass_mode=true")
    assert list(machine.memory_notes(bypassed, QWEN_1_5B, [H100])) == [update]
    half = job("rows_per_micro_batch=12", "data.max_response_length=2048", "method=cw_grpo_live")
    assert gpu_memory(QWEN_1_5B, half).update == pytest.approx(66e9, abs=1e9)
