# SPDX-License-Identifier: Apache-2.0
"""The paper's five benchmarks as custom tasks of lighteval 0.13, to check our numbers with the tool the paper used.

Tasks: ``cw_grpo:aime24``, ``amc23``, ``math500``, ``minerva``, ``olympiadbench`` (lighteval has tasks of its own named
aime24 and math_500, with other wordings, and none for amc23 and minerva). This file needs ``benchmarks.yaml`` and
``prompts/paper.yaml`` beside it, and lighteval; nothing else of this project. docs/evaluation.md has the commands,
``lighteval-requirements.txt`` the versions.

Environment variables:

``CW_GRPO_LIGHTEVAL_DATA``
    A folder of files that ``cw-grpo data`` wrote (``aime24.parquet``, ...): no network, the same rows, and the wording
    that the files hold. Without it the rows come from the hub, in the wording of the paper's Figure 4.
``CW_GRPO_LIGHTEVAL_SAMPLES``
    Answers per question, 1 by default as in the paper; the metric is their mean, lighteval's ``avg@n`` for mathematics.
``CW_GRPO_LIGHTEVAL_MAX_TOKENS``
    Limit of an answer's length, 32768 by default; lighteval lowers it to what the model's context leaves.
``CW_GRPO_LIGHTEVAL_SYSTEM``
    ``joined`` (default): a task cannot set a system message, so a wording's system text stands before the question in
    one user message. ``apart``: it is left out here, for lighteval's model argument ``system_prompt`` to give, as
    ``lighteval_model.yaml`` does; the chat is then the one that verl makes.
"""

import atexit
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import jinja2
import yaml
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

HERE = Path(__file__).resolve().parent
TRAINING = "open-rs"
BENCHMARKS = yaml.safe_load((HERE / "benchmarks.yaml").read_text(encoding="utf-8"))
WORDING = yaml.safe_load((HERE / "prompts" / "paper.yaml").read_text(encoding="utf-8"))
DATA = os.environ.get("CW_GRPO_LIGHTEVAL_DATA")
SAMPLES = int(os.environ.get("CW_GRPO_LIGHTEVAL_SAMPLES", "1"))
MAX_TOKENS = int(os.environ.get("CW_GRPO_LIGHTEVAL_MAX_TOKENS", "32768"))
SYSTEM = os.environ.get("CW_GRPO_LIGHTEVAL_SYSTEM", "joined")


def local_row(line, task_name=None):
    """A question from a row that ``cw-grpo data`` wrote."""
    return make_doc(line["prompt"], line["reward_model"]["ground_truth"], task_name)


def hub_row(line, task_name=None, *, entry):
    """A question from a row of the hub; columns as in ``benchmarks.yaml``."""

    def column(what):
        found = [name for candidate in entry[what] for name in line if name.casefold() == candidate]
        if len(found) > 1 and what != "question":
            raise ValueError(f"{task_name}: which column is it, {found}? The columns are {sorted(line)}")
        return line[found[0]] if found else None

    question, answer, solution = (column(what) for what in ("question", "answer", "solution"))
    if question is None or (answer is None and solution is None):
        raise ValueError(f"{task_name}: no question or no answer; the columns are {sorted(line)}")
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    chat = [m | {"content": jinja2.Template(m["content"]).render(question=question.strip())} for m in WORDING]
    # lighteval takes the reference from a solution's box by itself.
    return make_doc(chat, answer, task_name) if answer is not None else make_doc(chat, solution, task_name, raw=True)


def make_doc(chat, reference, task_name, raw=False):
    """One user message; the reference in a box, where lighteval's extraction reads LaTeX as LaTeX."""
    roles = [message["role"] for message in chat]
    if not set(roles) <= {"system", "user"}:
        raise ValueError(f"{task_name}: lighteval takes a system text and a question, not a chat of {roles}")
    texts = [message["content"] for message in chat if SYSTEM == "joined" or message["role"] != "system"]
    gold = str(reference) if raw else f"$\\boxed{{{str(reference).strip().strip('$')}}}$"
    return Doc(task_name=task_name, query="\n\n".join(texts), choices=[gold], gold_index=0)


def local_repository(name, split):
    """A folder that `datasets` loads as a repository with this benchmark alone: lighteval names no data files."""
    file = (Path(DATA) / f"{name}.parquet").resolve()
    if not file.is_file():
        return str(file)  # datasets then says that this is what it could not find, if the task is asked for
    folder = Path(FOLDERS, name)
    folder.mkdir()
    shutil.copy(file, folder / f"{split}.parquet")
    return str(folder)


def task(name, entry):
    """The lighteval task of an entry of ``benchmarks.yaml``."""
    split = entry["split"] if DATA else entry["hub_split"]
    return LightevalTaskConfig(
        name=f"cw_grpo:{name}",
        prompt_function=local_row if DATA else partial(hub_row, entry=entry),
        hf_repo=local_repository(name, split) if DATA else entry["id"],
        hf_subset="default",
        hf_avail_splits=[split],
        evaluation_splits=[split],
        few_shots_split=None,
        few_shots_select=None,
        generation_size=MAX_TOKENS,
        stop_sequence=[],  # lighteval's own default, a tuple, fails for models without a chat template
        metrics=[Metrics.avg_at_n_math(sample_params={"n": SAMPLES})],
        version=1,
    )


if SYSTEM not in ("joined", "apart"):
    raise ValueError(f"CW_GRPO_LIGHTEVAL_SYSTEM={SYSTEM}: it is joined or apart")
if DATA:
    if not Path(DATA).is_dir():
        raise FileNotFoundError(f"CW_GRPO_LIGHTEVAL_DATA={DATA}: there is no such folder")
    FOLDERS = tempfile.mkdtemp(prefix="cw_grpo_lighteval_")
    atexit.register(shutil.rmtree, FOLDERS, ignore_errors=True)

TASKS_TABLE = [task(name, entry) for name, entry in BENCHMARKS.items() if name != TRAINING]
