# SPDX-License-Identifier: Apache-2.0
"""The platform ``cpu`` for verl: torch on the CPU, gloo, and Ray's resource ``GPU`` as the unit of placement."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class CpuModule(ModuleType):
    """``torch.cpu`` with what else verl expects of ``torch.cuda``.

    "Allocated" and "reserved" are the resident memory of this process, the maximum is its peak; there is no cache.
    """

    def __init__(self) -> None:
        super().__init__("torch.cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    @staticmethod
    def get_device_name(device: Any = None) -> str:
        """The key of verl's table of peak FLOP/s, from which it computes ``perf/mfu``."""
        return "CPU"

    @staticmethod
    def memory_allocated(device: Any = None) -> int:
        """Resident memory of this process in bytes."""
        return psutil.Process().memory_info().rss

    memory_reserved = memory_allocated

    @staticmethod
    def max_memory_allocated(device: Any = None) -> int:
        """Peak resident memory of this process in bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    max_memory_reserved = max_memory_allocated

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        """The state of torch's generator, which a checkpoint keeps."""
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        """Take a checkpoint's state back."""
        torch.set_rng_state(state)

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        """Free and total memory of the machine in bytes."""
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def empty_cache() -> None:
        """Nothing to do: the CPU allocator keeps no cache."""


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """Runs verl's workers on CPU cores.

    Ray must be told how many workers it may place: ``ray_kwargs.ray_init.num_gpus=N`` declares N places under the name
    verl's placement code asks for, whatever hardware is there.
    """

    _module = CpuModule()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # opt-in: verl must not pick this by itself, only by VERL_PLATFORM=cpu

    def current_device(self) -> torch.device:
        # Not an index as on other platforms: verl hands this to Tensor.to(), which would read an int as an accelerator.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """Nothing to select."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Nothing to wait for."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """Nothing to set."""

    def empty_cache(self) -> None:
        """Nothing to free."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # what Ray sets for its resource "GPU"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No profiler."""

    def profiler_stop(self) -> None:
        """No profiler."""

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
