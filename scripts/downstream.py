#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The doctor and the adapters' tests with other versions of verl: results/downstream.csv.

    python scripts/downstream.py [VERSION | CHECKOUT ...] [--page docs/upstream.md]

By default all releases that CW-GRPO supports. Each is downloaded once, without its dependencies, into a directory of
its own under outputs/downstream, which is then put before the packages of this Python. A checkout is used as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from packaging.version import Version
from pages import write_table

from cw_grpo.verl_versions import LOSSES_SINCE, PLUGINS_SINCE, TESTED, tested

ROOT = Path(__file__).resolve().parents[1]
ESTIMATOR = ("test_settings.py", "test_advantage.py")
EVERYTHING = (
    *ESTIMATOR,
    *("test_advantage_sessions.py", "test_policy_loss.py", "test_group_order.py", "test_plugin.py"),
    *("checks", "hooks", "doctor/test_local.py"),
)
"""Tests of the adapters, under tests/."""


def releases() -> list[str]:
    """The tested releases; a development version is not on PyPI."""
    return [name for name in TESTED if not Version(name).is_devrelease]


def find(verl: str) -> tuple[str, Path]:
    """The version of a release or a checkout, and the directory to import it from; downloads what is not there.

    Raises:
        ValueError: neither a tested release nor a checkout of verl.
        subprocess.CalledProcessError: pip cannot install it.
    """
    if verl in releases():
        directory = ROOT / "outputs" / "downstream" / f"verl-{verl}"
        if not (directory / f"verl-{verl}.dist-info").is_dir():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
            subprocess.run([*pip, f"verl=={verl}"], check=True)
        return verl, directory
    version = Path(verl) / "verl" / "version" / "version"
    if not version.is_file():
        raise ValueError(f"{verl} is neither a checkout of verl nor a tested release. Tested are {tested()}")
    return str(Version(version.read_text().strip())), Path(verl).resolve()


def try_version(version: str, directory: Path, work: Path) -> dict[str, object]:
    """The doctor's verdict and the numbers of tests, by column."""
    since = Version(Version(version).base_version)
    everything = since >= Version(LOSSES_SINCE)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)])}
    if since < Version(PLUGINS_SINCE):
        env["VERL_USE_EXTERNAL_MODULES"] = "cw_grpo.plugin"
    work.mkdir(parents=True, exist_ok=True)
    doctor = subprocess.run([sys.executable, "-c", "from cw_grpo.cli import app; app(['doctor'])"], cwd=work, env=env)
    xml = work / f"{version}.xml"
    files = [str(ROOT / "tests" / name) for name in (EVERYTHING if everything else ESTIMATOR)]
    marks = "not e2e and not slow" + ("" if everything else " and not losses")
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={xml}", "-m", marks, *files], cwd=ROOT, env=env)
    suite = next(ET.parse(xml).iter("testsuite"))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {
        "verl": version,
        "supported": TESTED.get(version, "not a tested version"),
        "doctor": "ok" if doctor.returncode == 0 else "failed",
        "tests": int(suite.get("tests", 0)),
        "failed": failed,
        "skipped": int(suite.get("skipped", 0)),
    }


def table(rows: pd.DataFrame) -> str:
    """The rows as a Markdown table."""
    header = [list(rows.columns), ["---"] * len(rows.columns)]
    lines = [" | ".join(map(str, row)) for row in (*header, *rows.itertuples(index=False))]
    return "\n".join(f"| {line} |" for line in lines)


def main(
    verl: Annotated[list[str] | None, typer.Argument(help="Releases or checkouts.")] = None,
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("results/downstream.csv"),
    page: Annotated[Path | None, typer.Option(help="Markdown page whose table is written anew.")] = None,
) -> None:
    """Run the doctor and the tests with each; exit 1 if one fails."""
    try:
        found = [find(name) for name in verl or releases()]
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    rows = pd.DataFrame([try_version(*one, ROOT / "outputs" / "downstream") for one in found])
    if out.exists():  # the rows of other versions stay
        others = pd.read_csv(out)
        rows = pd.concat([others[~others.verl.isin(rows.verl)], rows])
    rows = rows.sort_values("verl", key=lambda names: names.map(Version))
    rows.to_csv(out, index=False)
    print(rows.to_string(index=False))
    if page is not None:
        write_table(page, "results/downstream.csv", table(rows))
    if rows.failed.any() or (rows.doctor != "ok").any():
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
