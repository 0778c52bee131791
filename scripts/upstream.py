#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the recipe as verl-recipe takes it: one self-contained directory, from the files of the package.

    python scripts/upstream.py OUT          for example ../verl/recipe/cw_grpo

The method, its adapters, the reward and the configurations of methods are copied from the package and its recipe; what
only the directory has lies in upstream/recipe. Each source file gets verl's licence header; nothing else is changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    *("groups", "inputs", "weights", "baseline", "metrics"),
    *("settings", "advantage", "policy_loss", "group_order"),
)
"""The modules of the package that the recipe takes; they import one another alone."""
HEADER = """\
# Copyright 2026 Individual Contributor: the CW-GRPO on verl maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""


def sources() -> dict[Path, Path]:
    """The files of the directory, by their path within it."""
    recipe = ROOT / "recipe" / "cw_grpo"
    taken = [ROOT / "cw_grpo" / f"{name}.py" for name in MODULES] + sorted(recipe.glob("reward*"))
    own = ROOT / "upstream" / "recipe"
    return {
        **{Path(path.name): path for path in taken},
        **{path.relative_to(recipe): path for path in sorted((recipe / "config" / "method").glob("*.yaml"))},
        **{path.relative_to(own): path for path in sorted(own.rglob("*")) if path.suffix in SUFFIXES},
    }


SUFFIXES = {".md", ".py", ".sh", ".txt", ".yaml"}


def with_header(source: str) -> str:
    """A source file with the licence header on top, below a shebang."""
    if source.startswith("#!"):
        shebang, rest = source.split("\n", 1)
        return f"{shebang}\n{HEADER}{rest}"
    return HEADER + source


def write(out: Path) -> list[Path]:
    """Write the directory; the files' paths within it.

    Raises:
        FileExistsError: ``out`` is not empty, or not a directory.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not an empty directory: name a new one, or remove what is in it")
    files = sources()
    for name, source in files.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        if target.suffix in (".py", ".sh"):
            target.write_text(with_header(source.read_text(encoding="utf-8")), encoding="utf-8")
    return list(files)


def main(out: Annotated[Path, typer.Argument(help="Directory to write: new, or empty.")]) -> None:
    """Write the recipe for verl-recipe."""
    try:
        files = write(out)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    lines = {name: len((out / name).read_text(encoding="utf-8").splitlines()) for name in files if name.suffix == ".py"}
    code = sum(count for name, count in lines.items() if name.parts[0] != "tests")
    print(f"{out}: {len(files)} files, {code} lines of Python without its tests")


if __name__ == "__main__":
    typer.run(main)
