"""A self-contained HTML report of runs, with the PNG and CSV behind every part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader
from matplotlib import colormaps

from cw_grpo.files import new_file
from cw_grpo.report import attenuation, evaluations, provenance, steps, tokens
from cw_grpo.report.collect import Run, read_run

# Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a method.
COLOURS = dict(
    grpo="#000000", clip_cov="#E69F00", kl_cov="#56B4E9", cw_grpo="#D55E00", cw_grpo_live="#009E73",
    cw_grpo_released="#CC79A7",
)  # fmt: skip


def build(arguments: Sequence[str], out: Path, evaluated: Sequence[Path] = ()) -> Path:
    """Write ``out/report.html`` and its PNG and CSV files; ``evaluated``: files and folders of `cw-grpo eval`.

    Raises:
        ValueError: none of the runs can be read.
    """
    found, missing = _read_runs(arguments)
    methods: dict[str, list[Run]] = {}
    for run in found:
        methods.setdefault(run.method, []).append(run)
    for name, members in methods.items():
        if differing := provenance.unlike(members):
            missing.append(f"{name}: its runs stand here as seeds of one method, and differ in {', '.join(differing)}")
    spare = colormaps["tab20"].colors
    colours = {name: COLOURS.get(name, spare[i % 20]) for i, name in enumerate(methods)}
    parts = [
        steps.summary(methods, missing, out),
        steps.over_steps(methods, colours, out),
        steps.entropy_against_reward(methods, colours, out),
        attenuation.covariance(methods, colours, out),
        attenuation.quadrants(methods, out),
        tokens.context(methods),
        attenuation.theory(methods, colours, out),
        *([evaluations.evaluations(evaluated, out)] if evaluated else []),
        provenance.what_was_run(found, out),
    ]
    template = Environment(loader=PackageLoader("cw_grpo.report", "."), autoescape=True).get_template(
        "template.html.j2"
    )
    with new_file(out / "report.html") as temporary:
        temporary.write_text(template.render(parts=parts), encoding="utf-8")
    return out / "report.html"


def _read_runs(arguments: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs, each once and each with a name of its own; and what is not there."""
    found: dict[Path, Run] = {}
    missing: list[str] = []
    for argument in arguments:
        try:
            run = read_run(argument)
        except (ValueError, OSError) as error:
            missing.append(str(error))
            continue
        if run.path.resolve() in found:
            missing.append(f"{argument}: named twice, and read once")
            continue
        found[run.path.resolve()] = run
        missing += run.missing
    if not found:
        raise ValueError("no run can be read: " + "; ".join(missing))
    runs = list(found.values())
    names = Counter(run.name for run in runs)
    for run in runs:
        if names[run.name] > 1:
            run.name = str(run.path)
    return runs, missing
