# SPDX-License-Identifier: Apache-2.0
"""recipe/cw_grpo/lighteval_tasks.py. lighteval needs an environment of its own, whose Python is named by a variable:

python -m venv DIR && DIR/bin/pip install -r recipe/cw_grpo/lighteval-requirements.txt
touch "$(DIR/bin/python -c 'import lighteval; print(*lighteval.__path__)')/tasks/tasks/tinyBenchmarks.pkl"
CW_GRPO_LIGHTEVAL_PYTHON=DIR/bin/python python -m pytest tests/test_lighteval.py
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.datasets.benchmarks import benchmarks

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipe" / "cw_grpo"
TASKS = RECIPE / "lighteval_tasks.py"
PYTHON = os.environ.get("CW_GRPO_LIGHTEVAL_PYTHON")
needs_lighteval = pytest.mark.skipif(not PYTHON, reason="CW_GRPO_LIGHTEVAL_PYTHON names no Python with lighteval 0.13")
ANSWERS = ["540", "\\frac{1}{2}", "$2$", "x^2+1", "0.25", "(1, 2)", "1, 2", "\\sqrt{3}", "-7"]
ALWAYS = "\\boxed{-7}"
# Responses to a question whose answer is 540, with lighteval's score and the recipe's accuracy: docs/reward.md.
SCORED = [
    ("So \\boxed{540}.", 1, 1),
    ("<think>\\boxed{541}?</think> \\boxed{540}", 1, 1),
    ("<think>\\boxed{540}?</think> \\boxed{541}", 0, 0),
    ("First \\boxed{541}. Then \\boxed{540}.", 1, 1),
    ("First \\boxed{540}. Then \\boxed{541}.", 0, 0),
    ("\\boxed{541} or \\boxed{540}", 0, 1),
    ("I do not know.", 0, 0),
    ("It is 540.", 1, 0),
    ("<think>Perhaps \\boxed{540}", 1, 0),
    ("<think>It is \\boxed{540}.</think> Done.", 0, 0),
    ("\\boxed{540}</think> Done.", 1, 0),
    ("The final answer is $541$, no: \\boxed{540}", 0, 1),
]


def test_the_tasks_come_from_the_recipes_table_and_need_lighteval_alone() -> None:
    tree = ast.parse(TASKS.read_text("utf-8"))
    imported = {
        n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in tree.body if hasattr(n, "names")
    }
    third_party = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert third_party == {"jinja2", "yaml", "lighteval"}
    constants = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}
    training = ast.literal_eval(constants["TRAINING"])
    assert [b.name for b in benchmarks().values() if b.split != "test"] == [training]
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert not [b.id for b in benchmarks().values() if any(b.id in text for text in texts)]
    assert "benchmarks.yaml" in texts and (TASKS.parent / "benchmarks.yaml").is_file()


def test_the_model_arguments_hold_the_papers_system_message() -> None:
    model = yaml.safe_load((RECIPE / "lighteval_model.yaml").read_text("utf-8"))["model_parameters"]
    (system,) = (
        message["content"]
        for message in yaml.safe_load((RECIPE / "prompts" / "paper.yaml").read_text("utf-8"))
        if message["role"] == "system"
    )
    assert model["system_prompt"] == system
    assert "max_new_tokens" not in model["generation_parameters"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = "".join(json.dumps({"problem": f"Question {i}?", "answer": a}) + "\n" for i, a in enumerate(ANSWERS))
    for name in ("aime24", "minerva"):
        (folder / f"{name}.jsonl").write_text(rows)
        done = CliRunner().invoke(app, ["data", name, "--from", str(folder / f"{name}.jsonl"), "--out", str(folder)])
        assert done.exit_code == 0, done.output
    return folder


def lighteval(data: Path | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    settings.pop("PYTHONPATH", None)
    if data is not None:
        settings |= {"CW_GRPO_LIGHTEVAL_DATA": str(data), "HF_HOME": str(data / "hf")}
    return subprocess.run([PYTHON, *arguments], env=settings, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def accuracy():
    """The recipe's accuracy of a response."""
    pytest.importorskip("math_verify")
    from verl.utils.import_utils import load_module

    reward = load_module(str(RECIPE / "reward.py"))
    yield lambda text, reference: reward.compute_score("math", text, reference)["acc"]
    reward.close_pools()


@needs_lighteval
def test_what_is_scored_as_right(data, accuracy) -> None:
    """Each reference and no other, from files and from the hub's rows; responses as docs/reward.md says."""
    code = """
    import json, sys
    from lighteval.models.model_output import ModelResponse
    from lighteval.pipeline import PipelineParameters
    from lighteval.tasks.registry import Registry
    from lighteval.utils.utils import remove_reasoning_tags
    module = Registry.create_custom_tasks_module(sys.argv[1])
    answers = json.loads(sys.argv[2])
    docs = [module.make_doc([{"role": "user", "content": "q"}], a, "t") for a in answers]
    metric = module.TASKS_TABLE[0].metrics[0].sample_level_fn
    answer = lambda doc, a: metric.compute(doc, ModelResponse(text=["So \\\\boxed{" + a.strip("$") + "}."] * 2))
    entry = module.BENCHMARKS["minerva"]
    rows = [{"problem": "q", "answer": ["$2$"], "solution": "no"}, {"problem": "q", "solution": "It is \\\\boxed{2}."}]
    hub = [module.hub_row(row, "t", entry=entry) for row in rows]
    tags = PipelineParameters(launcher_type=None).reasoning_tags
    texts = [remove_reasoning_tags(text, tag_pairs=tags) for text in json.loads(sys.argv[3])]
    print(json.dumps({
        "names": [task.name for task in module.TASKS_TABLE],
        "metric": module.TASKS_TABLE[0].metrics[0].metric_name,
        "scores": [[float(answer(doc, a)) for a in answers] for doc in docs],
        "hub": [float(answer(doc, a)) for doc in hub for a in ("2", "3")],
        "queries": [doc.query for doc in hub],
        "texts": [float(metric.compute(docs[0], ModelResponse(text=[text] * 2))) for text in texts],
    }))
    """
    responses = [text for text, *_ in SCORED]
    run = ("-c", textwrap.dedent(code), str(TASKS), json.dumps(ANSWERS), json.dumps(responses))
    done = lighteval(data, *run, CW_GRPO_LIGHTEVAL_SAMPLES="2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["names"] == [f"cw_grpo:{b.name}" for b in benchmarks().values() if b.split == "test"]
    assert result["metric"] == "avg@n:n=2"
    assert [row[i] for i, row in enumerate(result["scores"])] == [1.0] * len(ANSWERS)
    wrong = [
        (ANSWERS[i], ANSWERS[j]) for i, row in enumerate(result["scores"]) for j, s in enumerate(row) if s and i != j
    ]
    assert wrong in ([], [("(1, 2)", "1, 2"), ("1, 2", "(1, 2)")])
    assert result["hub"] == [1.0, 0.0, 1.0, 0.0]
    assert all(
        q.startswith("A conversation between User and Assistant.") and q.endswith("\n\nq") for q in result["queries"]
    )
    found = [(text, score, accuracy(text, "540")) for text, score in zip(responses, result["texts"], strict=True)]
    assert found == SCORED


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model over characters that always answers \\boxed{-7}: no character comes twice, so each has one follower."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cw_grpo.job.small_models import character_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer()
    tokenizer.model_max_length = 2048
    chain = tokenizer.convert_tokens_to_ids(["<|assistant|>", *ALWAYS, tokenizer.eos_token])
    size = len(tokenizer) + len(tokenizer) % 2
    sizes = {"hidden_size": size, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes))
    with torch.no_grad():
        for weight in llama.model.layers.parameters():
            weight.zero_()
        llama.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        llama.lm_head.weight.zero_()
        for token, follower in pairwise(chain):
            llama.lm_head.weight[follower, token] = 100.0
    llama.generation_config.update(do_sample=True, eos_token_id=chain[-1], pad_token_id=tokenizer.pad_token_id)
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def accelerate(
    data: Path, model: str, tasks: str, out: Path, *options: str, **settings: str
) -> subprocess.CompletedProcess:
    saved = ("--custom-tasks", str(TASKS), "--output-dir", str(out), "--save-details")
    run = ("-m", "lighteval", "accelerate", model, tasks, *saved, *options)
    return lighteval(data, *run, CW_GRPO_LIGHTEVAL_MAX_TOKENS="16", **settings)


@needs_lighteval
def test_a_whole_run_on_local_files_scores_as_the_recipe_does(data, model, accuracy, tmp_path) -> None:
    pd = pytest.importorskip("pandas")
    arguments = f"model_name={model},batch_size=3,dtype=float32,generation_parameters={{temperature:0.7}}"
    tasks = "cw_grpo:aime24|0,cw_grpo:minerva|0"
    done = accelerate(data, arguments, tasks, tmp_path, CW_GRPO_LIGHTEVAL_SAMPLES="2")
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = tmp_path.rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]
    for name in ("aime24", "minerva"):
        assert scores[f"cw_grpo:{name}|0"]["avg@n:n=2"] == pytest.approx(1 / len(ANSWERS))
        (details,) = tmp_path.rglob(f"details_cw_grpo:{name}*.parquet")
        rows = list(pd.read_parquet(details).itertuples())
        references = [row.doc["choices"][0].removeprefix("$\\boxed{").removesuffix("}$") for row in rows]
        assert sorted(references) == sorted(answer.strip("$") for answer in ANSWERS)
        for row, reference in zip(rows, references, strict=True):
            assert list(row.model_response["text"]) == [ALWAYS] * 2
            assert row.metric["avg@n:n=2"] == accuracy(ALWAYS, reference)


@needs_lighteval
def test_with_the_system_message_apart_the_chat_is_verls(data, model, tmp_path) -> None:
    pd = pytest.importorskip("pandas")
    from transformers import AutoTokenizer

    arguments = yaml.safe_load((RECIPE / "lighteval_model.yaml").read_text("utf-8"))
    arguments["model_parameters"] |= {"model_name": str(model), "dtype": "float32"}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(arguments))
    one = ("--max-samples", "1")
    done = accelerate(
        data, str(tmp_path / "model.yaml"), "cw_grpo:aime24|0", tmp_path, *one, CW_GRPO_LIGHTEVAL_SYSTEM="apart"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (details,) = tmp_path.rglob("details_*.parquet")
    (row,) = pd.read_parquet(details).itertuples()
    chats = [list(prompt) for prompt in pd.read_parquet(data / "aime24.parquet")["prompt"]]
    (chat,) = (chat for chat in chats if chat[-1]["content"] == row.doc["query"])
    assert [message["role"] for message in chat] == ["system", "user"]
    expected = AutoTokenizer.from_pretrained(model).apply_chat_template(chat, add_generation_prompt=True)
    assert list(row.model_response["input_tokens"]) == expected["input_ids"]


@needs_lighteval
def test_a_model_without_a_chat_template(data, model, tmp_path) -> None:
    arguments = f"model_name={model},batch_size=1,dtype=float32,override_chat_template=False"
    done = accelerate(data, arguments, "cw_grpo:aime24|0", tmp_path, "--max-samples", "1")
    assert done.returncode == 0, done.stderr[-3000:]


@needs_lighteval
def test_a_file_that_is_not_there_is_named(data, model, tmp_path) -> None:
    done = accelerate(data, f"model_name={model},batch_size=1", "cw_grpo:amc23|0", tmp_path)
    assert done.returncode != 0 and f"{data}/amc23.parquet" in done.stderr + done.stdout
