"""The paper's training set and benchmarks in verl's parquet schema: ``cw-grpo data open-rs|aime24|...|all``.

``recipe/cw_grpo/benchmarks.yaml`` says where each is and how many questions it has (Table 4, appendix A). Rows come
from the Hugging Face hub or from a local file. Nothing is dropped in silence: a row that cannot be used is left out,
counted and named; rows are numbered from 0, and ``extra_info.index`` keeps that number.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from cw_grpo.datasets.rows import Prompt, make_row, write_rows
from cw_grpo.paths import RECIPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS = (".parquet", ".json", ".jsonl", ".csv")
HUB_TIMEOUT = 10
NAMED = 5
"""So many rows are named in a report; the rest are counted."""


@dataclass(frozen=True)
class Benchmark:
    """An entry of ``benchmarks.yaml``; the columns are names that may be in use."""

    name: str
    id: str
    hub_split: str
    size: int
    split: str
    question: Sequence[str]
    answer: Sequence[str]
    solution: Sequence[str]


def benchmarks(path: Path = RECIPE / "benchmarks.yaml") -> dict[str, Benchmark]:
    """What the recipe knows, by name."""
    return {name: Benchmark(name, **entry) for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def paper_prompt() -> Path:
    """The wording of the paper's Figure 4."""
    return RECIPE / "prompts" / "paper.yaml"


# --- reading ------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet, json, jsonl or csv file; a csv's cells stay the text that they are.

    Raises:
        ValueError: not such a file, or not a table; names it.
        FileNotFoundError: there is none.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix == ".csv":
        import pandas

        try:
            with warnings.catch_warnings():
                # Rows longer than the header: pandas would take their first cells as an index.
                warnings.simplefilter("error", pandas.errors.ParserWarning)
                return pandas.read_csv(path, dtype=str, na_filter=False, index_col=False).to_dict("records")
        except pandas.errors.ParserWarning as error:
            raise ValueError(
                f"{path}: its rows have more cells than its header: put quotes around text with commas"
            ) from error
        except (ValueError, pandas.errors.ParserError) as error:
            raise ValueError(f"{path} is not a csv table with a header: {_line(error)}") from error

    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    # datasets copies what it reads into a cache: its own folder, so that an edited file is never answered from there.
    with tempfile.TemporaryDirectory() as cache, _no_bars(datasets):
        try:
            return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache).to_list()
        except Exception as error:  # of pyarrow, datasets, the json parser, or StopIteration for an empty file
            raise ValueError(f"{path} is not a {kind} table: {_line(error.__cause__ or error)}") from error


def read_hub(benchmark: Benchmark) -> list[dict[str, Any]]:
    """The rows on the Hugging Face hub, or in its cache on this machine when the hub is out of reach.

    Raises:
        RuntimeError: neither; says the id and the way without a network.
    """
    import datasets
    from huggingface_hub import HfApi

    try:
        with _hub(lambda: HfApi().dataset_info(benchmark.id, timeout=HUB_TIMEOUT)):
            return datasets.load_dataset(benchmark.id, split=benchmark.hub_split).to_list()
    except Exception as error:  # of httpx, huggingface_hub, datasets, and of whatever the files hold
        raise RuntimeError(
            f"{benchmark.name}: could not load {benchmark.id} (split {benchmark.hub_split}) from the Hugging Face hub: "
            f"{_line(error)}. Without a network, copy the file here and name it with --from FILE "
            f"({', '.join(FORMATS)})."
        ) from error


@contextlib.contextmanager
def _hub(ask: Callable[[], Any]) -> Iterator[None]:
    """Ask the hub a question; if it is out of reach, caches alone serve the block: retries take half a minute."""
    import datasets
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        ask()
    except (httpx.TransportError, OfflineModeIsEnabled, ConnectionError):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _no_bars(datasets: ModuleType) -> Iterator[None]:
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or from the hub.

    Raises:
        RuntimeError: it cannot be loaded, or has no chat template.
    """
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    local = Path(name).is_dir()
    try:
        with contextlib.nullcontext() if local else _hub(lambda: HfApi().model_info(name, timeout=HUB_TIMEOUT)):
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise RuntimeError(f"--tokenizer {name}: {_line(error)}") from error
    if not tokenizer.chat_template:
        raise RuntimeError(f"--tokenizer {name} has no chat template, so that a prompt's length is not known")
    return tokenizer


def _line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."


# --- columns and values -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Which columns hold the question and the answer; ``boxed``: the answer is the last box of that text."""

    question: str
    answer: str
    boxed: bool = False


def find_columns(
    names: Sequence[str], benchmark: Benchmark, *, question: str | None = None, answer: str | None = None
) -> Columns:
    """The columns to read: those given, or those whose names ``benchmarks.yaml`` knows.

    Raises:
        ValueError: a column is missing, or two could be meant; lists the columns and says how to name one.
    """
    here = f"the columns are: {', '.join(map(repr, names)) or 'none'}"

    def choose(what: str, given: str | None, candidates: Sequence[str]) -> str | None:
        if given is not None:
            if given not in names:
                raise ValueError(f"{benchmark.name}: no column {given!r} (--{what}-column); {here}")
            return given
        found = [name for name in candidates if name in names]
        if len(found) > 1:
            raise ValueError(
                f"{benchmark.name}: {' and '.join(map(repr, found))} could each be the {what}: say which with "
                f"--{what}-column; {here}"
            )
        return found[0] if found else None

    ask = choose("question", question, benchmark.question)
    if ask is None:
        raise ValueError(
            f"{benchmark.name}: no column for the question (looked for {', '.join(benchmark.question)}): name it with "
            f"--question-column; {here}"
        )
    reply = choose("answer", answer, benchmark.answer)
    if reply is not None:
        # A column named for solutions holds the answer in a box, also when it was asked for by that name.
        return Columns(ask, reply, boxed=reply in benchmark.solution)
    text = choose("answer", None, benchmark.solution)
    if text is None:
        looked = ", ".join([*benchmark.answer, *benchmark.solution])
        raise ValueError(
            f"{benchmark.name}: no column for the answer (looked for {looked}): name it with --answer-column; {here}"
        )
    return Columns(ask, text, boxed=True)


class Unusable(Exception):
    """A value that cannot be a question or an answer; the message says why, the same for rows of one kind."""


def text_of(value: Any, what: str) -> str:
    """A cell as text without outer white space; a number in digits, 540.0 as 540; a list's entries joined by ``, ``.

    Raises:
        Unusable: nothing there (None, NaN, white space, an empty list), or a value that is none of these.
    """
    if isinstance(value, list):
        if not value:
            raise Unusable(f"no {what}")
        return ", ".join(text_of(entry, what) for entry in value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unusable(f"no {what}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes a column of integers with a gap one of floats
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        text = str(value)
    else:
        raise Unusable(f"{what} is neither text nor a number")
    if not text:
        raise Unusable(f"no {what}")
    if "\0" in text:
        raise Unusable(f"{what} with a NUL character")
    return text


def load_reward(path: Path = RECIPE / "reward.py") -> ModuleType:
    """The recipe's reward, by path as verl loads it."""
    spec = importlib.util.spec_from_file_location("cw_grpo_recipe_reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- making -------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """What became of a benchmark's rows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    columns: Columns | None = None
    left_out: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Row numbers by reason."""
    repeated: list[tuple[int, int]] = field(default_factory=list)
    """Rows whose question an earlier row has, with that row; they are kept."""

    def report(self) -> Iterator[str]:
        """A line for each thing that a user should know."""
        for reason, numbers in sorted(self.left_out.items()):
            yield f"left out: {len(numbers)} with {reason}: row {_some(numbers)}"
        if self.repeated:
            pairs = _some([f"{row} (as {first})" for row, first in self.repeated])
            yield f"kept: {len(self.repeated)} whose question is there already: row {pairs}"


def _some(items: Sequence[Any]) -> str:
    more = len(items) - NAMED
    return ", ".join(map(str, items[:NAMED])) + (f" and {more} more" if more > 0 else "")


def make_rows(
    benchmark: Benchmark,
    source: Sequence[Mapping[str, Any]],
    *,
    prompt: Prompt,
    question_column: str | None = None,
    answer_column: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_length: int = 512,
) -> Made:
    """Rows of verl's schema from a benchmark's own.

    Args:
        benchmark: which one; its name becomes ``data_source``.
        source: its rows.
        prompt: the wording.
        question_column: as :func:`find_columns`.
        answer_column: as :func:`find_columns`.
        tokenizer: if given, prompts of more than ``max_prompt_length`` tokens in its chat template are left out.
        max_prompt_length: verl's ``data.max_prompt_length``.

    Raises:
        ValueError: no rows, no such columns, or not one row that can be used.
    """
    if not source:
        raise ValueError(f"{benchmark.name}: no rows")
    made = Made(read=len(source))
    names = list(dict.fromkeys(name for row in source for name in row))
    made.columns = find_columns(names, benchmark, question=question_column, answer=answer_column)
    reward = load_reward()  # a reference is read from a box as a response's answer is
    seen: dict[str, int] = {}
    for index, row in enumerate(tqdm(source, desc=benchmark.name, unit="question", disable=None, delay=2)):
        try:
            question = text_of(row.get(made.columns.question), "question")
            answer = text_of(row.get(made.columns.answer), "answer")
            if made.columns.boxed and not (answer := reward.last_box(answer) or ""):
                raise Unusable("no \\boxed{} in the solution")
            if len(answer) > reward.BOX_LIMIT:
                raise Unusable(f"answer longer than the {reward.BOX_LIMIT} characters that the reward reads")
            chat = prompt.render({"question": question})
            if tokenizer is not None and _tokens(tokenizer, chat) > max_prompt_length:
                raise Unusable(f"prompt of more than {max_prompt_length} tokens")
        except Unusable as error:
            made.left_out[str(error)].append(index)
            continue
        if (first := seen.setdefault(question, index)) != index:
            made.repeated.append((index, first))
        made.rows.append(make_row(benchmark.name, chat, answer, index=index, split=benchmark.split, question=question))
    if not made.rows:
        raise ValueError(f"{benchmark.name}: not one of {made.read} rows can be used: {'; '.join(made.report())}")
    return made


def _tokens(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> int:
    return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def make_benchmark(
    benchmark: Benchmark,
    out: Path,
    *,
    source: Path | None,
    prompt: Prompt,
    echo: Callable[[str], None],
    any_size: bool = False,
    strict: bool = False,
    **options: Any,
) -> Made:
    """Read a benchmark, report on it, and write it to ``out``, whole or not at all.

    Args:
        benchmark: which one.
        out: a parquet file.
        source: a local file; None for the hub.
        prompt: the wording.
        echo: takes a line of the report.
        any_size: let the hub's rows be another number than Table 4's; a local file's may be in any case.
        strict: refuse a row that would be left out.
        options: of :func:`make_rows`.

    Raises:
        ValueError: rows, columns or their number are not as they should be.
        RuntimeError: the hub is out of reach.
    """
    rows = read_hub(benchmark) if source is None else read_file(source)
    where = f"{benchmark.id}" if source is None else str(source)
    try:
        made = make_rows(benchmark, rows, prompt=prompt, **options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if made.read != benchmark.size:
        size = f"{where} has {made.read} rows, where the paper's {benchmark.name} has {benchmark.size}"
        if source is None and not any_size:
            raise ValueError(f"{size}; nothing was written (--any-size takes it as it is)")
        echo(f"{benchmark.name}: WARNING: {size}")
    if strict and made.left_out:
        raise ValueError(f"{where}: {'; '.join(made.report())}; nothing was written (--strict)")
    write_rows(made.rows, out)
    box = ", its last box" if made.columns.boxed else ""
    echo(
        f"{benchmark.name}: {len(made.rows)} of {made.read} questions in {out} "
        f"(columns {made.columns.question!r}, {made.columns.answer!r}{box})"
    )
    for line in made.report():
        echo(f"{benchmark.name}: {line}")
    return made


def make_benchmarks(
    names: Sequence[str],
    *,
    out: Path,
    source: Path | None = None,
    prompt: Path | None = None,
    tokenizer: str | None = None,
    echo: Callable[[str], None] = print,
    **options: Any,
) -> list[str]:
    """Make several benchmarks; one that fails does not stop the others.

    Args:
        names: of ``benchmarks.yaml``.
        out: a folder for ``<name>.parquet``; with one name, a path that ends in ``.parquet`` is the file itself.
        source: None for the hub, or a local file; a folder of ``<name>.parquet`` (or another of :data:`FORMATS`).
        prompt: by default :func:`paper_prompt`.
        tokenizer: folder or id; None leaves lengths unchecked.
        echo: takes a line of the report.
        options: of :func:`make_benchmark`.

    Returns:
        what went wrong, a message each.

    Raises:
        ValueError: ``out``, ``source`` or ``prompt`` cannot be used.
        RuntimeError: the tokenizer cannot.
    """
    known = benchmarks()
    several = len(names) > 1
    if several and out.suffix == ".parquet":
        raise ValueError(f"--out {out}: several benchmarks need a folder")
    if source is not None and not source.exists():
        raise FileNotFoundError(f"--from {source}: there is nothing of that name")
    if several and source is not None and not source.is_dir():
        raise ValueError(f"--from {source}: several benchmarks need a folder of files named as they are")
    wording = Prompt(prompt or paper_prompt())
    if tokenizer is None:
        echo("prompt lengths are not checked (--tokenizer does it)")
    else:
        options["tokenizer"] = load_tokenizer(tokenizer)
    failures = []
    for name in names:
        target = out if out.suffix == ".parquet" else out / f"{name}.parquet"
        try:
            file = _file_of(name, source)
            if file is not None and target.exists() and file.samefile(target):
                raise ValueError(f"{target} is what is read: write to another place with --out")
            make_benchmark(known[name], target, source=file, prompt=wording, echo=echo, **options)
        except (ValueError, RuntimeError, OSError) as error:
            failures.append(str(error))
    return failures


def _file_of(name: str, source: Path | None) -> Path | None:
    if source is None or not source.is_dir():
        return source
    found = [source / f"{name}{suffix}" for suffix in FORMATS if (source / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        what = " and ".join(path.name for path in found) or "none"
        raise ValueError(f"--from {source} must have one of {', '.join(name + s for s in FORMATS)}; it has {what}")
    return found[0]
