# SPDX-License-Identifier: Apache-2.0
"""`cw-grpo eval` with verl's own servers on the CPU: a checkpoint is merged, the command killed and run again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM
from two_nodes import ON_BOTH_NODES, Cluster

from cw_grpo.datasets.prompts import Prompt
from cw_grpo.datasets.reasoning_gym import reasoning_gym_rows
from cw_grpo.datasets.references import load_reward
from cw_grpo.datasets.rows import write_rows
from cw_grpo.evaluation import answer_store, questions
from cw_grpo.job.plan import default_config_dir, make_plan

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SAMPLES, MAX_TOKENS, BATCH = 64, 24, 6


@pytest.fixture(scope="module")
def run_folder(tiny_model: str, tmp_path_factory) -> Path:
    """A run with one checkpoint of the tiny model, as verl's FSDP engine writes it on one rank."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    actor = run / "checkpoints/global_step_2/actor"
    shutil.copytree(tiny_model, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(AutoModelForCausalLM.from_pretrained(tiny_model).state_dict(), actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text("2")
    (run / "config.yaml").write_text("algorithm: {adv_estimator: cw_grpo}\n")
    return run


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    """A benchmark of six sums."""
    path = tmp_path_factory.mktemp("data") / "sums.parquet"
    prompt = Prompt(default_config_dir().parent / "prompts/expression.yaml")
    options = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    write_rows(reasoning_gym_rows("chain_sum", size=6, seed=7, split="test", prompt=prompt, options=options), path)
    return path


def test_prompts_are_tokenized_as_verl_does_and_have_room(run_folder: Path) -> None:
    from verl.workers.config import HFModelConfig

    from cw_grpo.evaluation.servers import tokenize

    model = HFModelConfig(path=str(run_folder / "checkpoints/global_step_2/actor/huggingface"))
    config = make_plan(["actor_rollout_ref.rollout.response_length=24"], config_name="eval").config
    chats = {str(i): [{"role": "user", "content": "1+" * i + "1"}] for i in (1, 40)}
    ids = tokenize(config, model, {"sums": chats})
    assert ids["sums", 40] == model.tokenizer.apply_chat_template(
        chats["40"], add_generation_prompt=True, return_dict=False
    )
    assert config.actor_rollout_ref.rollout.max_model_len == len(ids["sums", 40]) + 24
    long = {"7": [{"role": "user", "content": "1+" * 200}]}
    with pytest.raises(ValueError, match="sums, question 7: a prompt of 4.. tokens leaves no room .*the model has 256"):
        tokenize(make_plan([], config_name="eval").config, model, {"sums": long})


def expected(model: Path, benchmark: questions.Questions) -> dict[answer_store.Key, str]:
    """The answers that the CPU backend gives to these requests, all at once, without Ray and without verl's servers."""
    from verl.workers.config import HFModelConfig, RolloutConfig

    from cw_grpo.cpu.rollout import TransformersServer

    config = RolloutConfig(name="transformers", dtype="float32", max_num_seqs=64)
    server = TransformersServer(config, HFModelConfig(path=str(model), use_remove_padding=False))
    tokenizer = server.model_config.tokenizer

    async def ask(question: int, sample: int) -> str:
        chat = benchmark.rows[question].prompt
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        seed = answer_store.request_seed(0, benchmark.name, question, sample)
        params = {"temperature": 1.0, "top_p": 0.95, "max_tokens": MAX_TOKENS, "seed": seed}
        output = await server.generate(prompt, params, f"{question}-{sample}")
        return tokenizer.decode(output.token_ids, skip_special_tokens=True)

    async def all_at_once() -> dict[answer_store.Key, str]:
        await server.launch_server()
        keys = [(question, sample) for question in range(len(benchmark.rows)) for sample in range(SAMPLES)]
        return dict(zip(keys, await asyncio.gather(*(ask(*key) for key in keys)), strict=True))

    return asyncio.run(all_at_once())


def left(mark: str) -> list[psutil.Process]:
    """The living processes that inherited ``MARK``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark:
                found.append(process)
    return found


def test_a_killed_evaluation_goes_on_across_two_nodes_and_loses_nothing(
    run_folder: Path, sums: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """Killed with a Ray of its own, resumed on a cluster that runs already, with a server on each node."""
    out = tmp_path / "out"
    command = [
        *(str(Path(sys.executable).with_name("cw-grpo")), "eval", str(run_folder), f"--benchmarks={sums}"),
        *(f"--samples={SAMPLES}", f"--max-tokens={MAX_TOKENS}", "--temperature=1", f"--out={out}"),
        f"--set=actor_rollout_ref.rollout.max_num_seqs={BATCH}",
    ]
    file = out / "cw_grpo@2/sums.answers.jsonl"
    env = {**os.environ, "MARK": str(out)}
    start = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": env}
    process = subprocess.Popen(command, **start)
    deadline = time.monotonic() + 600
    while not (file.exists() and file.read_bytes().count(b"\n")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command resumes where it was" in output
    assert not left(str(out))

    kept = file.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    finished = kept.count(b"\n")
    assert 0 < finished < 6 * SAMPLES
    file.write_bytes(kept + b'{"question": 5, "sam')
    on_both_nodes = (f"--set={setting}" for setting in ON_BOTH_NODES)
    resumed = subprocess.run([*command, *on_both_nodes], **{**start, "env": cluster.env}, timeout=600)
    assert resumed.returncode == 0, resumed.stdout
    assert f"{finished} of {6 * SAMPLES} answers are there" in resumed.stdout
    assert file.read_bytes().startswith(kept)
    nodes, servers = cluster.look(
        "sum(node['Alive'] for node in ray.nodes())",
        "[(a['JobID'], a['Address']['NodeID']) for a in actors if 'Server' in a['ActorClassName']]",
    )
    assert nodes == 2
    latest = max(job for job, _ in servers)
    assert len({node for job, node in servers if job == latest}) == 2

    benchmark = questions.read("sums", sums)
    texts = expected(run_folder / "checkpoints/global_step_2/actor/merged", benchmark)
    assert {key: answer["text"] for key, answer in answer_store.read_answers(file).items()} == texts
    reward = load_reward()
    accuracies = [
        [reward.compute_score("", texts[i, k], row.ground_truth)["acc"] for k in range(SAMPLES)]
        for i, row in enumerate(benchmark.rows)
    ]
    result = json.loads((out / "cw_grpo@2/sums.json").read_text())
    assert [row["acc"] for row in result["questions"]] == accuracies
    assert result["pass@1"]["mean"] == pytest.approx(sum(map(sum, accuracies)) / (6 * SAMPLES))
    assert 0 < result["pass@1"]["mean"] < 1
    assert (result["method"], result["step"], result["samples"]) == ("cw_grpo", 2, SAMPLES)
    assert result["settings"]["temperature"] == 1.0 and result["settings"]["max_tokens"] == MAX_TOKENS
    assert "Table 2" in resumed.stdout and (out / "scores.csv").is_file()
