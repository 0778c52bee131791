# SPDX-License-Identifier: Apache-2.0
"""A section of the report: text, pictures and tables, each picture and table with its file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

from cw_grpo.files import new_file
from cw_grpo.plot import picture


@dataclass
class ReportSection:
    """What the template shows under one heading."""

    title: str
    text: str
    notes: list[str] = field(default_factory=list)
    """What is not shown, and why."""
    pictures: list[tuple[str, str, str]] = field(default_factory=list)
    """File, its content as a data URI, caption."""
    tables: list[tuple[str, Markup, str]] = field(default_factory=list)
    """File (or none), HTML, caption."""
    files: list[str] = field(default_factory=list)
    """CSV files of the numbers in the pictures."""

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def table(self, out: Path, name: str, frame: pd.DataFrame, caption: str) -> None:
        """Show the frame, and write it to ``out/name.csv``; nothing of an empty one."""
        if len(frame):
            _write_csv(out, name, frame)
            html = frame.to_html(index=False, border=0, escape=True, float_format="{:.4g}".format, na_rep="-")
            self.tables.append((f"{name}.csv", Markup(html), caption))

    def file(self, out: Path, name: str, frame: pd.DataFrame) -> None:
        """Write numbers of a picture to ``out/name.csv``, and link them."""
        _write_csv(out, name, frame)
        self.files.append(f"{name}.csv")

    @contextmanager
    def picture(self, out: Path, name: str, caption: str, *, legend: bool = True) -> Iterator[Axes]:
        """Axes to draw on; then the picture is shown, and written to ``out/name.png``."""
        with picture(out / f"{name}.png") as (figure, [axis]):
            yield axis
            handles, labels = axis.get_legend_handles_labels()
            if legend and handles:
                figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(labels) > 2 else 2)
        data = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        self.pictures.append((f"{name}.png", f"data:image/png;base64,{data}", caption))


def _write_csv(out: Path, name: str, frame: pd.DataFrame) -> None:
    with new_file(out / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False)
