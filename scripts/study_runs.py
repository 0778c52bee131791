# SPDX-License-Identifier: Apache-2.0
"""The runs of the study in scripts/study.yaml, and where their results are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "scripts" / "study.yaml"
RESULTS = ROOT / "results" / "study"
OUTPUTS = ROOT / "outputs" / "study"
REWARD, ENTROPY = "critic/score/mean", "actor/entropy"


@dataclass(frozen=True)
class Run:
    """A run of the study."""

    method: str
    overrides: tuple[str, ...]
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.rate:g}-s{self.seed}"

    @property
    def directory(self) -> Path:
        return OUTPUTS / self.name

    @property
    def metrics(self) -> pd.DataFrame | None:
        """Reward, entropy and length by step; None while the run is not finished."""
        path = RESULTS / f"{self.name}.jsonl"
        return pd.read_json(path, lines=True).set_index("step") if path.exists() else None

    def keep_metrics(self, metrics: pd.DataFrame) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": int(step), **row}) for step, row in metrics.round(5).to_dict("index").items()]
        (RESULTS / f"{self.name}.jsonl").write_text("\n".join(lines) + "\n")

    @property
    def accuracy(self) -> dict[str, float] | None:
        """What the best checkpoint answers: `step`, `pass@1` and `pass@8`; None while it is not evaluated."""
        path = RESULTS / f"{self.name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def keep_accuracy(self, accuracy: dict[str, float]) -> None:
        (RESULTS / f"{self.name}.json").write_text(json.dumps(accuracy) + "\n")


def read_plan() -> dict[str, Any]:
    """What scripts/study.yaml says."""
    return yaml.safe_load(PLAN.read_text())


def choosing(plan: dict[str, Any]) -> list[Run]:
    """The runs that choose each method's rate."""
    return of_every_method(plan, plan["rates"], plan["choosing_seeds"])


def given_up(plan: dict[str, Any]) -> list[Run]:
    """The runs at rates that were tried first and given up."""
    return of_every_method(plan, **plan["given_up"])


def of_every_method(plan: dict[str, Any], rates: list[float], seeds: list[int]) -> list[Run]:
    """A run of each method at each rate with each seed."""
    return [
        Run(method, (*plan["common"], *overrides), rate, seed)
        for seed in seeds
        for rate in rates
        for method, overrides in plan["methods"].items()
    ]


def best_rates(plan: dict[str, Any]) -> dict[str, float]:
    """Each method's rate with the largest mean area under the reward curve; only of methods with all their runs."""
    areas: dict[str, dict[float, list[float]]] = {}
    for run in choosing(plan):
        metrics = run.metrics
        if metrics is not None:
            areas.setdefault(run.method, {}).setdefault(run.rate, []).append(metrics[REWARD].mean())
    seeds, rates = len(plan["choosing_seeds"]), len(plan["rates"])
    complete = {m: of for m, of in areas.items() if len(of) == rates and all(len(v) == seeds for v in of.values())}
    return {method: max(of, key=lambda rate: np.mean(of[rate])) for method, of in complete.items()}


def measuring(plan: dict[str, Any]) -> Iterator[Run]:
    """The runs at the best rates, as far as these are known."""
    best = best_rates(plan)
    for seed in plan["seeds"]:
        for method, rate in best.items():
            yield Run(method, (*plan["common"], *plan["methods"][method]), rate, seed)
        if "grpo" in best:
            common = (*plan["common"], *plan["off_policy"]["overrides"])
            slower = best["grpo"] * plan["slow_grpo"]
            yield Run("slow_grpo", (*plan["common"], *plan["methods"]["grpo"]), slower, seed)
            for method, overrides in plan["off_policy"]["methods"].items():
                yield Run(f"off_policy_{method}", (*common, *overrides), best["grpo"], seed)


def baseline(method: str) -> str:
    """The method that a method is compared to: GRPO with as many updates a rollout."""
    return "off_policy_grpo" if method.startswith("off_policy") else "grpo"
