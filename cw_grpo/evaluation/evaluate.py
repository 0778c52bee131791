"""The whole evaluation: what is there, what is missing, the servers for that, scores and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cw_grpo.datasets.references import load_reward
from cw_grpo.doctor.local import DISTRIBUTIONS, installed
from cw_grpo.evaluation import answers as kept
from cw_grpo.evaluation import generation, models, questions, scores, tables
from cw_grpo.files import new_file
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.plan import launcher_settings, make_plan

ROLLOUT = "actor_rollout_ref.rollout"


def evaluate(
    arguments: Sequence[str],
    *,
    benchmarks: Sequence[str],
    home: Path,
    out: Path | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    config_dir: Path | None = None,
    overrides: Sequence[str] = (),
    echo: Callable[[str], None] = print,
) -> Path:
    """Ask every model every question that has no answer yet, score all answers, and print the tables.

    Args:
        arguments: models, as :func:`models.parse` reads them.
        benchmarks: names, or parquet files in verl's schema.
        home: where the benchmarks' files are (in `data`).
        out: the evaluation's folder, by default `eval` in ``home``.
        samples: answers to each question; None for the configuration's.
        temperature: of sampling; None for the configuration's.
        max_tokens: of an answer; None for the configuration's.
        config_dir: folder of `eval.yaml`, by default the recipe's.
        overrides: hydra's, for instance ``cluster=1node``.
        echo: takes a line for the terminal.

    Returns:
        the folder.

    Raises:
        ValueError, OSError: what cannot be used; LaunchError: of the settings, or of the servers.
    """
    files = questions.find(benchmarks, home / "data")
    asked = {name: questions.read(name, path) for name, path in files.items()}
    sources = [models.parse(argument) for argument in arguments]
    labels = [source.label for source in sources]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"two models are called {twice[0]}: tell them apart with NAME=PATH")
    given = {f"{ROLLOUT}.n": samples, f"{ROLLOUT}.temperature": temperature, f"{ROLLOUT}.response_length": max_tokens}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    plan = make_plan([*overrides, *options], config_dir=config_dir, config_name="eval")
    config = plan.config
    if config.reward.custom_reward_function.path is not None:
        raise ValueError(
            "reward.custom_reward_function.path: evaluations are scored with the recipe's reward "
            f"({config.prepare.reward}); leave it out"
        )
    samples = config.actor_rollout_ref.rollout.n
    sampling = _sampling(config, samples)
    reward = load_reward((plan.config_dir / config.prepare.reward).resolve())
    reward_kwargs = OmegaConf.to_container(config.reward.custom_reward_function.reward_kwargs, resolve=True)
    generation.check_machine(config)

    out = (out or home / "eval").resolve()
    log = out / "verl.log"
    with RunDirectory(out).lock("--out"):
        settings = launcher_settings(config)
        served = [models.prepare(source, settings, log, echo) for source in sources]
        for model in served:
            reward.check_start(str(model.path), sampling["chat_template"], **reward_kwargs)
        kept.claim(
            out,
            sampling=sampling,
            benchmarks={name: benchmark.sha256 for name, benchmark in asked.items()},
            models={model.label: model.sha256 for model in served},
        )
        echo(
            f"{len(served)} models, {sum(len(b.rows) for b in asked.values())} questions, {samples} samples each: "
            f"temperature {sampling['temperature']}, top_p {sampling['top_p']}, at most {sampling['max_tokens']} tokens"
        )
        for model in served:
            _answer(config, model, asked, samples, out, log, echo)
            for name, benchmark in asked.items():
                answers = kept.read_answers(kept.answers_file(out, model.label, name))
                found = scores.score(reward, reward_kwargs, benchmark, answers, samples, label=model.label)
                about = {
                    "method": model.method,
                    "step": model.step,
                    "model": str(model.source),
                    "model_sha256": model.sha256,
                    "benchmark": name,
                    "benchmark_sha256": benchmark.sha256,
                    "settings": {**sampling, "reward": reward_kwargs},
                    "versions": {d: installed(d) for d in DISTRIBUTIONS},
                }
                scores.write(out / model.label / f"{name}.json", {**about, **found})
        reward.close_pools()
        show(out, echo)
    return out


def _sampling(config: DictConfig, samples: int) -> dict[str, Any]:
    """What an answer depends on beside model and question.

    Raises:
        ValueError: settings that make no sense.
    """
    rollout = config.actor_rollout_ref.rollout
    if samples < 1:
        raise ValueError(f"--samples must be at least 1, got {samples}")
    if rollout.response_length < 1:
        raise ValueError(f"--max-tokens must be at least 1, got {rollout.response_length}")
    if not (math.isfinite(rollout.temperature) and rollout.temperature >= 0):
        raise ValueError(f"--temperature must be 0 or more, got {rollout.temperature}")
    if rollout.temperature == 0 and samples > 1:
        raise ValueError(f"--temperature 0 gives the same answer each time: use --samples 1 instead of {samples}")
    return {
        **{key: rollout[key] for key in ("temperature", "top_p", "top_k")},
        "max_tokens": rollout.response_length,
        **{key: rollout[key] for key in ("max_model_len", "seed", "name", "dtype")},
        "chat_template": OmegaConf.to_container(config.data.apply_chat_template_kwargs, resolve=True),
    }


def _answer(
    config: DictConfig,
    model: models.Model,
    asked: dict[str, questions.Questions],
    samples: int,
    out: Path,
    log: Path,
    echo: Callable[[str], None],
) -> None:
    """Have the answers made that are not there yet."""
    files = {name: kept.answers_file(out, model.label, name) for name in asked}
    seed = config.actor_rollout_ref.rollout.seed
    pending, there = [], 0
    for name, benchmark in asked.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        answers = kept.read_answers(files[name])
        wanted = [(question, sample) for question in range(len(benchmark.rows)) for sample in range(samples)]
        missing = [key for key in wanted if key not in answers]
        there += len(wanted) - len(missing)
        pending += [(name, *key, kept.request_seed(seed, name, *key)) for key in missing]
    if there:
        echo(f"{model.label}: {there} of {there + len(pending)} answers are there")
    if pending:
        generation.generate(config, model.path, asked, pending, files, label=model.label, log=log)


def show(out: Path, echo: Callable[[str], None]) -> None:
    """Print the tables of all that a folder holds, and write ``scores.csv``."""
    found = scores.read([out])
    every = tables.long(found)
    with new_file(out / "scores.csv") as temporary:
        every.to_csv(temporary, index=False)
    shown = every.drop(columns=["timeout", "bad_reference", "temperature", "max_tokens"])
    if shown["step"].isna().all():
        shown = shown.drop(columns="step")
    echo("\n" + shown.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    levels, differences, missing = tables.table2(found)
    echo("\npass@1 in percent, 95% intervals over questions (Table 2)\n" + levels.to_string(index=False, na_rep="-"))
    if len(differences):
        echo(f"\nagainst {tables.BASELINE}, question by question\n" + differences.to_string(index=False, na_rep="-"))
    if len(steps := tables.table3(found)):
        echo("\nby training step (Table 3)\n" + steps.to_string(index=False, na_rep="-"))
    for line in missing:
        echo(f"not there: {line}")
    for entry in found:
        for part, why in (("bad_reference", "their reference cannot be read"), ("timeout", "comparing took too long")):
            if entry[part]:
                echo(
                    f"{entry['method']} on {entry['benchmark']}: {entry[part]:.1%} of the answers count as wrong: {why}"
                )
    echo(f"\nscores: {out}")
