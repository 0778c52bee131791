# SPDX-License-Identifier: Apache-2.0
"""Modules of the working directory that a job would import in place of the installed ones.

``python -m``, which starts a job, puts the working directory first, and Ray does the same in the job's workers; a
command such as ``cw-grpo`` does not. So in a clone of verl, or in a directory with a ``ray/`` or a ``queue.py`` of its
own, the two import different code.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    *("cw_grpo", "verl", "ray", "torch", "transformers", "tensordict", "transfer_queue", "vllm", "sglang", "megatron"),
    *("accelerate", "aiohttp", "cachetools", "codetiming", "datasets", "dill", "fastapi", "filelock", "flash_attn"),
    *("huggingface_hub", "hydra", "latex2sympy2_extended", "math_verify", "msgspec", "numpy", "omegaconf", "packaging"),
    *("pandas", "peft", "psutil", "pyarrow", "pydantic", "reasoning_gym", "requests", "safetensors", "scipy", "sympy"),
    *("tensorboard", "tokenizers", "torchdata", "tqdm", "uvicorn", "wandb", "wrapt", "yaml", "zmq"),
)
"""What a job imports beside the standard library."""

# In a process of its own, which has imported next to nothing yet. It imports nothing but `sys`: any other module of
# the standard library may be one that is shadowed.
_FIND = """
import sys

def find(name):
    if name in sys.modules:  # imported at the start of the interpreter, before the working directory counts
        return sys.modules[name].__spec__ and sys.modules[name].__spec__.origin
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None)
        if spec is not None:
            return spec.origin or next(iter(spec.submodule_search_locations))
    return None

directory, *names = sys.argv[1:]
sys.path[:] = [directory, *(entry for entry in sys.path if entry != "")]
print([find(name) for name in names])
"""


def shadowing_problem(directory: Path) -> str | None:
    """Which modules a job that is started in ``directory`` would import from there, unlike this process; else None.

    Raises:
        RuntimeError: Python cannot be started.
    """
    if not (names := _candidates(directory)):
        return None
    done = subprocess.run([sys.executable, "-c", _FIND, str(directory), *names], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{sys.executable} cannot be started: {done.stderr.strip()}")
    shadowed = [
        f"{name} would be {there}, not {here}"
        for name, there in zip(names, ast.literal_eval(done.stdout), strict=True)
        if (here := _origin(name)) is not None and here != there
    ]
    if not shadowed:
        return None
    return (
        f"a job started in {directory} imports that directory's modules in place of the installed ones: "
        f"{'; '.join(shadowed)}. Start it in another directory"
    )


def _origin(name: str) -> str | None:
    """Where this process finds a module; None if nowhere."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _candidates(directory: Path) -> list[str]:
    """The entries of a directory that can be imported by the name of a module that a job imports."""
    known = {*PACKAGES, *sys.stdlib_module_names}
    try:
        names = {entry.name.partition(".")[0] for entry in directory.iterdir()}
    except OSError:
        return []
    return sorted(names & known)
