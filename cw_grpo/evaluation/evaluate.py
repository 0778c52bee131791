# SPDX-License-Identifier: Apache-2.0
"""The whole evaluation: what is there, what is missing, the servers for that, scores and tables."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cw_grpo.datasets.references import load_reward
from cw_grpo.doctor.local import DISTRIBUTIONS
from cw_grpo.evaluation import answer_store, checkpoints, generation, questions, scores
from cw_grpo.evaluation.model_requests import ModelRequest, model_requests
from cw_grpo.evaluation.run_settings import FUNCTION, TEMPLATE
from cw_grpo.evaluation.terminal import show
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.plan import launcher_settings, make_plan
from cw_grpo.verl_versions import installed

logger = logging.getLogger(__name__)

ROLLOUT = "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how."""

    models: Sequence[str]
    """As :func:`checkpoints.parse` reads them."""
    benchmarks: Sequence[str]
    """Names, or parquet files in verl's schema."""
    home: Path
    """Where the benchmarks' files are (in `data`)."""
    out: Path | None = None
    """The evaluation's directory, by default `eval` in ``home``."""
    samples: int | None = None
    """Answers to each question; None for the configuration's."""
    temperature: float | None = None
    """Of sampling; None for the configuration's."""
    max_tokens: int | None = None
    """Of an answer; None for the configuration's."""
    prompt: str | None = None
    """A YAML file of a wording, or `benchmark` for that of the benchmarks' files; None for that of a run's training."""
    config_dir: Path | None = None
    """Directory of `eval.yaml`, by default the recipe's."""
    overrides: Sequence[str] = ()
    """Hydra's, for instance ``cluster=1node``."""


def evaluate(request: Request) -> Path:
    """Have every model answer every question that has no answer yet, score all answers, and log the tables.

    Returns:
        the directory.

    Raises:
        ValueError, OSError: what cannot be used; LaunchError: of the settings, or of the servers.
    """
    files = questions.find(request.benchmarks, request.home / "data")
    benchmarks = {name: questions.read(name, path) for name, path in files.items()}
    sources = [checkpoints.parse(argument) for argument in request.models]
    labels = [source.label for source in sources]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"two models are called {twice[0]}: tell them apart with NAME=PATH")
    given = {
        f"{ROLLOUT}.n": request.samples,
        f"{ROLLOUT}.temperature": request.temperature,
        f"{ROLLOUT}.response_length": request.max_tokens,
    }
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    plan = make_plan([*request.overrides, *options], config_dir=request.config_dir, config_name="eval")
    config = plan.config
    if config.reward.custom_reward_function.path is not None:
        raise ValueError(
            f"{FUNCTION}.path: evaluations are scored with the recipe's reward ({config.prepare.reward}); leave it out"
        )
    sampling = _sampling(config)
    reward = load_reward((plan.config_dir / config.prepare.reward).resolve())
    requests = model_requests(sources, benchmarks, config, plan.config_dir, request.prompt)
    generation.check_machine(config)

    out = (request.out or request.home / "eval").resolve()
    log = out / "verl.log"
    samples = config.actor_rollout_ref.rollout.n
    with RunDirectory(out).lock("--out"):
        settings = launcher_settings(config)
        served = [(one, checkpoints.servable(one.source, settings, log)) for one in requests]
        for one, model in served:
            reward.check_start(str(model.path), one.chat_template, **one.reward_kwargs)
        answer_store.check_settings(
            out,
            sampling=sampling,
            benchmarks={name: benchmark.sha256 for name, benchmark in benchmarks.items()},
            models={model.label: model.sha256 for _, model in served},
            prompts={f"{model.label} {name}": one.prompt_digest(name) for one, model in served for name in benchmarks},
        )
        count = sum(len(benchmark.rows) for benchmark in benchmarks.values())
        logger.info(
            f"{len(served)} models, {count} questions, {samples} samples each: temperature {sampling['temperature']}, "
            f"top_p {sampling['top_p']}, at most {sampling['max_tokens']} tokens"
        )
        for one, model in served:
            _answer(config, one, model, samples, out, log)
            for name, benchmark in one.asked.items():
                answers = answer_store.read_answers(answer_store.answers_file(out, model.label, name))
                about = {
                    "method": one.source.method,
                    "step": one.source.step,
                    "model": str(one.source.path),
                    "model_sha256": model.sha256,
                    "benchmark": name,
                    "benchmark_sha256": benchmark.sha256,
                    "settings": {
                        **sampling,
                        "prompt": one.prompt_digest(name)[:12],
                        "reward": one.reward_kwargs,
                    },
                    "versions": {d: installed(d) for d in DISTRIBUTIONS},
                }
                found = scores.score(reward, one.reward_kwargs, benchmark, answers, samples, label=model.label)
                scores.write(out / model.label / f"{name}.json", {**about, **found})
        reward.close_pools()
        show(out)
    return out


def _sampling(config: DictConfig) -> dict[str, Any]:
    """What the answers of all models depend on, beside the models and the questions.

    Raises:
        ValueError: settings that make no sense.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.n < 1:
        raise ValueError(f"--samples must be at least 1, got {rollout.n}")
    if rollout.response_length < 1:
        raise ValueError(f"--max-tokens must be at least 1, got {rollout.response_length}")
    if not (math.isfinite(rollout.temperature) and rollout.temperature >= 0):
        raise ValueError(f"--temperature must be 0 or more, got {rollout.temperature}")
    if rollout.temperature == 0 and rollout.n > 1:
        raise ValueError(f"--temperature 0 gives the same answer each time: use --samples 1 instead of {rollout.n}")
    return {
        **{key: rollout[key] for key in ("temperature", "top_p", "top_k")},
        "max_tokens": rollout.response_length,
        **{key: rollout[key] for key in ("max_model_len", "seed", "name", "dtype")},
    }


def _answer(
    config: DictConfig, one: ModelRequest, model: checkpoints.Model, samples: int, out: Path, log: Path
) -> None:
    """Have the answers generated that are not there yet."""
    files = {name: answer_store.answers_file(out, model.label, name) for name in one.asked}
    seed = config.actor_rollout_ref.rollout.seed
    pending, there = [], 0
    for name, benchmark in one.asked.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        answers = answer_store.read_answers(files[name])
        wanted = [(question, sample) for question in range(len(benchmark.rows)) for sample in range(samples)]
        missing = [key for key in wanted if key not in answers]
        there += len(wanted) - len(missing)
        pending += [(name, *key, answer_store.request_seed(seed, name, *key)) for key in missing]
    if there:
        logger.info(f"{model.label}: {there} of {there + len(pending)} answers are there")
    if pending:
        config = config.copy()
        OmegaConf.update(config, TEMPLATE, one.chat_template, force_add=True)
        generation.generate(config, model.path, one.asked, pending, files, label=model.label, log=log)
