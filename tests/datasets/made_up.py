# SPDX-License-Identifier: Apache-2.0
"""Made-up benchmark rows, files of them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.datasets.benchmarks import benchmarks
from cw_grpo.datasets.conversion import ConversionResult, ConversionSettings, convert
from cw_grpo.datasets.prompts import Prompt, paper_prompt

ROWS = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(40)]


def paper(*arguments, **settings):
    return CliRunner().invoke(app, ["data", "paper", *map(str, arguments)], **settings)


def write(path: Path, rows) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        import pandas

        pandas.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def converted(rows, name="amc23", **settings) -> ConversionResult:
    return convert(benchmarks()[name], rows, ConversionSettings(Prompt(paper_prompt()), **settings))


def answers(result: ConversionResult) -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in result.rows]
