# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Option(envvar="CW_GRPO_HOME", help="Where models, data and runs are kept.")]
DEFAULT_HOME = Path("outputs")
