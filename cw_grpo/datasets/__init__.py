# SPDX-License-Identifier: Apache-2.0
"""Training data and benchmarks in verl's parquet schema: ``cw-grpo data``."""

BENCHMARKS = ("open-rs", "aime24", "amc23", "math500", "minerva", "olympiadbench")
"""The entries of recipe/cw_grpo/benchmarks.yaml."""
EVALUATED = BENCHMARKS[1:]
"""Those that the paper evaluates on."""
