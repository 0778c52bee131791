"""Training data in verl's parquet schema: ``cw-grpo data ...``.

A row has ``data_source``, ``prompt`` (a chat), ``ability``, ``reward_model`` (``style``, ``ground_truth``) and
``extra_info`` (``index``, ``split``, ``question``). Files are written whole or not at all, and the same input gives the
same bytes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from cw_grpo.files import new_file
from cw_grpo.paths import RECIPE

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("question", pa.string())])),
    ]
)
ROLES = ("system", "user", "assistant")


class Prompt:
    """A chat around a question, read from a YAML list of ``role`` and ``content``.

    A content is a Jinja template: ``{{ question }}``, or another of the values that the data offers. Braces as in
    ``\\boxed{}`` stand for themselves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            messages = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"prompt {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"prompt {path} is not YAML: {error}") from error
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and set(m) == {"role", "content"} and m["role"] in ROLES for m in messages
        ):
            raise ValueError(f"prompt {path} must be a list of messages with role ({', '.join(ROLES)}) and content")
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        try:
            self.messages = [(m["role"], environment.from_string(str(m["content"]).strip())) for m in messages]
            names = [jinja2.meta.find_undeclared_variables(environment.parse(str(m["content"]))) for m in messages]
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"prompt {path}: {error}") from error
        if not any(names):
            raise ValueError(f"prompt {path} leaves no room for the question: write {{{{ question }}}} somewhere")

    def render(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        """The chat with ``values`` filled in.

        Raises:
            ValueError: the prompt asks for a value that is not there; says which there are.
        """
        try:
            return [{"role": role, "content": template.render(values)} for role, template in self.messages]
        except jinja2.UndefinedError as error:
            raise ValueError(f"prompt {self.path}: {error}; the data offers: {', '.join(sorted(values))}") from error


def default_prompt() -> Path:
    """The wording for any question, in the checkout that this package is installed from."""
    return RECIPE / "prompts" / "boxed.yaml"


def make_row(
    data_source: str, prompt: list[dict[str, str]], ground_truth: str, *, index: int, split: str, question: str
) -> dict[str, Any]:
    """One row of verl's schema, for a mathematical question that a rule can check."""
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": index, "split": split, "question": question},
    }


def write_rows(rows: Iterable[dict[str, Any]], out: Path) -> int:
    """Write rows to a parquet file, whole or not at all; the number of rows."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    with new_file(out) as temporary:
        pq.write_table(table, temporary)
    return table.num_rows


def reasoning_gym_rows(
    task: str, *, size: int, seed: int, split: str, prompt: Prompt, options: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows from a task of the package ``reasoning-gym``, which can check any answer to its questions.

    Question ``i`` of most tasks depends on ``seed + i`` alone: two files whose ranges of seeds overlap share questions.

    Args:
        task: its name, for instance ``chain_sum``.
        size: number of questions.
        seed: of the task's random numbers.
        split: what ``extra_info.split`` says.
        prompt: the wording; may use ``question`` and the task's metadata, for instance ``expression``.
        options: settings of the task.

    Raises:
        ValueError: an unknown task, option or value; says which there are.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    options = dict(options or {})
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=5) or sorted(DATASETS)
        raise ValueError(f"reasoning-gym has no task {task!r}; for instance: {', '.join(close)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    known = [name for name in inspect.signature(DATASETS[task][1]).parameters if name not in ("seed", "size")]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"task {task} has no option {', '.join(unknown)}; its options are: {', '.join(known)}")
    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"task {task} refuses {options}: {error}") from error
    for index in tqdm(range(size), desc=task, unit="question", disable=None, delay=2):
        entry = dataset[index]
        chat = prompt.render({**entry["metadata"], "question": entry["question"]})
        yield make_row(
            f"reasoning_gym/{task}",
            chat,
            str(entry["answer"]),
            index=index,
            split=split,
            question=entry["question"],
        )


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """``["min_terms=2", "operators=[+, -]"]`` as a dict; values are YAML.

    Raises:
        ValueError: an entry without ``=``, a key given twice, or a value that is not YAML.
    """
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting}: write it as key=value")
        if key in options:
            raise ValueError(f"--set {key} is given twice")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {key}: {value!r} is not a YAML value") from error
    return options
