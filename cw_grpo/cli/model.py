# SPDX-License-Identifier: Apache-2.0
"""Make a small model: ``cw-grpo model``."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import user_errors


def model(
    name: Annotated[str, typer.Argument(help="smollm2 (SmolLM2-135M-Instruct) or tiny (a million parameters).")],
    out: Annotated[Path, typer.Option(help="Directory to make; a finished one is left as it is.")],
    seed: Annotated[int, typer.Option(help="Seed of tiny's weights and warm start.")] = 0,
) -> None:
    """Make a small model in Hugging Face's format, without a download from a model hub."""
    from cw_grpo.job.small_models import make_model

    with user_errors():
        make_model(name, out, seed=seed)
