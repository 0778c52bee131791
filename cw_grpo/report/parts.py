"""A part of the report: text, pictures and tables, each picture and table with its file."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd
from markupsafe import Markup

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt

from cw_grpo.files import new_file


@dataclass
class Part:
    """What the template shows under one heading; ``missing`` is what could not be shown, and why."""

    title: str
    text: str
    missing: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    tables: list[tuple[str, Markup]] = field(default_factory=list)

    def table(self, out: Path, name: str, frame: pd.DataFrame) -> None:
        """Show the frame, and write it to ``out/name.csv``."""
        write_csv(out, name, frame)
        html = frame.to_html(index=False, border=0, escape=True, float_format="{:.4g}".format, na_rep="-")
        self.tables.append((f"{name}.csv", Markup(html)))

    def picture(self, out: Path, name: str, figure: plt.Figure) -> None:
        """Show the figure, write it to ``out/name.png`` and close it."""
        with new_file(out / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        plt.close(figure)
        data = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        self.pictures.append((f"{name}.png", f"data:image/png;base64,{data}"))


def write_csv(out: Path, name: str, frame: pd.DataFrame) -> None:
    """Write ``out/name.csv``."""
    with new_file(out / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False)
