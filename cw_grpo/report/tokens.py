# SPDX-License-Identifier: Apache-2.0
"""The most attenuated tokens in their responses, as HTML. What a model wrote is text here, never markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from tokenizers import Tokenizer

from cw_grpo.hooks.samples import read_about
from cw_grpo.report.collect import Run
from cw_grpo.report.section import ReportSection

RESPONSES = 6
"""How many responses are shown."""
TOKENS = 120
"""How many tokens of each, around the most attenuated one."""


def most_attenuated_section(methods: Mapping[str, Sequence[Run]]) -> ReportSection:
    """The most attenuated tokens of one recorded step."""
    section = ReportSection(
        "The most attenuated tokens",
        "In their responses, the prompt in italics: the last recorded step with advantages of the first run of a "
        "method that applies the weights, else of the first run with recorded tokens.",
    )
    members = sorted((run for group in methods.values() for run in group), key=lambda run: not run.applies_weights)
    run = next((run for run in members if len(run.records)), None)
    if run is None:
        section.notes.append("Not shown: no run has recorded tokens.")
        return section
    steps = run.records.loc[run.records["advantage"] != 0, "step"]
    if steps.empty:
        section.notes.append(f"Not shown: {run.name}; no recorded token has an advantage other than zero.")
        return section
    file = next(file for file in reversed(run.record_files) if _has_advantages(file))
    shown, problem = most_attenuated(file)
    section.notes += [problem] if problem else []
    section.tables.append(("", _legend() + shown, f"{run.name}, {file.stem}"))
    return section


def _has_advantages(file: Path) -> bool:
    return bool((pd.read_parquet(file, columns=["advantage"])["advantage"].fillna(0) != 0).any())


def most_attenuated(file: Path) -> tuple[Markup, str | None]:
    """The responses of a recorded step with the smallest weights, as HTML; and why their text is not decoded, if so.

    Args:
        file: what :mod:`cw_grpo.hooks.record` wrote.
    """
    about = read_about(file)
    decode, problem = _decoder(about.get("model"))
    frame = pd.read_parquet(file)
    frame = frame[frame["advantage"].fillna(0) != 0]
    chosen = frame.groupby("response")["weight"].min().nsmallest(RESPONSES).index
    shown = []
    for response in chosen:
        tokens = frame[frame["response"] == response].sort_values("position").reset_index(drop=True)
        middle = int(tokens["weight"].idxmin())
        start = max(0, min(middle - TOKENS // 2, len(tokens) - TOKENS))
        part = tokens.iloc[start : start + TOKENS]
        prompt = (about.get("prompts") or {}).get(tokens["group"].iloc[0], [])[-TOKENS:]
        first = tokens.iloc[0]
        shown.append(
            Markup('<p class="tokens"><small>reward {:g}, advantage {:+.2f}</small><br><i>{}</i>{}{}{}</p>').format(
                first["reward"],
                first["advantage"],
                "".join(map(decode, prompt)),
                "… " if start else "",
                Markup("").join(
                    _span(decode(int(t)), w) for t, w in zip(part["token_id"], part["weight"], strict=True)
                ),
                " …" if start + TOKENS < len(tokens) else "",
            )
        )
    return Markup("").join(shown), problem


def _span(text: str, weight: float) -> Markup:
    """A token on a background that is darker for a smaller weight, and white from a weight of 1 on."""
    strength = 0.75 * (1 - min(1.0, max(0.0, weight)))
    return Markup('<span style="background:rgba(213,94,0,{:.2f})" title="weight {:.3g}">{}</span>').format(
        strength, weight, text
    )


def _decoder(model: str | None) -> tuple[Callable[[int], str], str | None]:
    """Token id to visible text, by the run's tokenizer; the id itself, and why, if there is none."""
    try:
        if not model or not Path(model).is_dir():
            raise OSError(f"no directory {model}")
        text_of = _reader(Path(model))
    except Exception as error:  # whatever a foreign tokenizer raises: the ids are shown
        return (
            lambda token: f"[{token}]"
        ), f"The tokenizer of {model} cannot be read ({type(error).__name__}): token ids are shown."

    def decode(token: int) -> str:
        text = text_of([token])[:80]
        return "".join(c if c.isprintable() else "⏎" if c == "\n" else f"\\x{ord(c):02x}" for c in text) or f"[{token}]"

    return decode, None


def _reader(model: Path) -> Callable[[list[int]], str]:
    """Token ids to their text, special tokens included."""
    file = model / "tokenizer.json"
    if file.is_file():  # transformers reads it too, and takes seconds to import
        tokenizer = Tokenizer.from_file(str(file))
        return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True).decode


def _legend() -> Markup:
    """What the colours mean."""
    weights = (1.0, 0.75, 0.5, 0.25, 0.0)
    return Markup('<p class="tokens">weight: {}</p>').format(
        Markup(" ").join(_span(f" {weight:g}{' or more' if weight == 1 else ''} ", weight) for weight in weights)
    )
