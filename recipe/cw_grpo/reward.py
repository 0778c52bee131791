# SPDX-License-Identifier: Apache-2.0
"""The paper's reward for verl: accuracy (1 if the answer equals the reference) plus format (1 for matched think tags).

Use it as `reward.custom_reward_function.path=.../reward.py`, with settings under
`reward.custom_reward_function.reward_kwargs`; docs/reward.md says what counts as right.

The text scored is written by a policy that is paid to fool it. Answers are therefore compared in processes of their own
(`reward_worker.py`, with the `reward_*` files it reads) under the kernel's limits: nothing an answer says can raise
here, hang or fill the memory. This file imports the standard library only; nothing starts before the first call.
"""

import atexit
import contextlib
import json
import logging
import math
import numbers
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("reward_worker.py")
BOX_LIMIT = 512
"""Longer boxes are no answer: it bounds what the parser can be made to read."""

OPEN, CLOSE = "<think>", "</think>"
BRACES = re.compile(r"\\\\?boxed\s*\{|\\.|[{}]", re.DOTALL)


# --- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What `reward.custom_reward_function.reward_kwargs` may hold."""

    accuracy_weight: float = 1.0
    """Weight of the accuracy part (paper: 1)."""
    format_weight: float = 1.0
    """Weight of the format part (paper: 1; the authors' 7B run: 0)."""
    require_think: bool = True
    """False where the prompt asks for no tags: the answer may stand anywhere, and format is no part of the score."""
    think_in_prompt: bool = False
    """True where the chat template itself opens the tag (DeepSeek-R1-Distill): the response then only closes it."""
    tokenizer: str | None = None
    """Path of the policy's tokenizer; if given, the tags are checked to survive verl's decoding (see `check_start`)."""
    processes: int = 2
    """Comparing processes of one reward worker, started when first needed."""
    timeout: float = 5.0
    """Seconds from dispatch to the kill of a comparing process."""
    cpu_seconds: int = 2
    """Processor seconds (rounded up to the next whole one) after which the kernel ends a comparison."""
    memory_mb: int = 1024
    """Address space of one comparing process."""

    def __post_init__(self) -> None:
        number = {"accuracy_weight", "format_weight", "timeout"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "tokenizer":
                good = value is None or isinstance(value, str)
            elif field.type is bool or isinstance(value, bool):
                good = field.type is type(value)
            else:
                good = isinstance(value, (int, float) if field.name in number else int) and math.isfinite(value)
            if not good:
                raise ValueError(f"reward_kwargs: {field.name}={value!r} is not valid (default: {field.default!r})")
        if self.processes < 1 or self.cpu_seconds < 1 or self.timeout <= 0 or self.memory_mb < 256:
            raise ValueError(f"reward_kwargs: {self} needs processes, cpu_seconds >= 1, timeout > 0, memory_mb >= 256")


FROM_VERL = {"reward_router_address", "reward_model_tokenizer"}
"""Arguments that verl adds where a reward model is in use; not ours."""


@lru_cache(maxsize=64)
def _settings(items: tuple[tuple[str, Any], ...]) -> Settings:
    known = {f.name for f in fields(Settings)}
    if unknown := {k for k, _ in items} - known:
        raise ValueError(f"reward_kwargs: unknown {sorted(unknown)}; known are {sorted(known)}")
    settings = Settings(**dict(items))
    if settings.tokenizer is not None:
        check_tags(settings.tokenizer, settings)
    return settings


def check_tags(path: str, settings: Settings, **template_kwargs: Any) -> None:
    """Check that the think tags reach the reward: verl decodes responses with special tokens skipped.

    Raises:
        ValueError: a tag is lost in decoding, or the chat template opens the tag and `think_in_prompt` is false.
    """
    if not settings.require_think:
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    text = f"{OPEN}a{CLOSE}b"
    decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)
    lost = [tag for tag in (OPEN, CLOSE) if tag not in decoded]
    if lost and (CLOSE in lost or not settings.think_in_prompt):
        raise ValueError(
            f"{path}: {lost} are special tokens and verl's decoding skips them, so that no response can "
            "have an answer or a format reward. Make them ordinary tokens, or ask for no tags (require_think=False)."
        )
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False, **template_kwargs
        )
        if prompt.rstrip().endswith(OPEN) and not settings.think_in_prompt:
            raise ValueError(
                f"{path}: the chat template opens {OPEN} itself; set "
                "++reward.custom_reward_function.reward_kwargs.think_in_prompt=True"
            )


def check_start(tokenizer: str | None = None, template_kwargs: dict | None = None, **settings: Any) -> None:
    """Check, before a job starts, that this reward can work: settings, think tags, comparing process.

    Args:
        tokenizer: path of the policy's tokenizer; without one the tags are not checked.
        template_kwargs: what the job hands to the chat template (`data.apply_chat_template_kwargs`).
        settings: the job's `reward_kwargs`; a `tokenizer` named there is the one that is checked.

    Raises:
        ValueError: unknown or invalid settings, or tags that do not reach the reward.
        RuntimeError: the comparing process does not start (math-verify missing, say).
    """
    path = settings.pop("tokenizer", None) or tokenizer
    chosen = _settings(tuple(settings.items()))
    if path is not None:
        check_tags(path, chosen, **(template_kwargs or {}))
    pool = Pool(chosen)
    try:
        if pool.ask(r"\frac{1}{2}", "0.5") != "right":
            raise RuntimeError("the comparing process does not know that 1/2 is 0.5")
    finally:
        pool.close()


# --- reading a response -------------------------------------------------------------------------------------------


def answer_region(text: str, settings: Settings) -> str:
    """The part of a response where the answer stands: after the last `</think>`; nothing if thinking never closes."""
    if not settings.require_think:
        return text
    _, closed, after = text.rpartition(CLOSE)
    if closed:
        return after
    return "" if settings.think_in_prompt or OPEN in text else text


def last_box(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}` of a text; None if there is none, or it is empty or too long.

    Braces are matched, escaped ones left alone, in one pass over the text.
    """
    if "boxed" not in text:
        return None
    stack: list[int | None] = []
    box: tuple[int, int] | None = None
    for m in BRACES.finditer(text):
        if m[0] == "{":
            stack.append(None)
        elif m[0] == "}":
            start = stack.pop() if stack else None
            if start is not None:
                box = start, m.start()
        elif m[0].endswith("{") and len(m[0]) > 2:
            stack.append(m.end())
    if box is None or box[1] - box[0] > BOX_LIMIT:
        return None
    return text[box[0] : box[1]].strip() or None


def think_format(text: str, settings: Settings) -> bool:
    """The paper's format part ("properly matched <think> tags", Appendix C), read strictly.

    Exactly one opening and one closing tag, only white space before the opening one, text inside and after. With
    `think_in_prompt` the opening tag is the prompt's, and the response must not open another.
    """
    if not settings.require_think:
        return False
    if settings.think_in_prompt:
        text = OPEN + text
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return False
    before, _, rest = text.partition(OPEN)
    inside, closed, after = rest.partition(CLOSE)
    return bool(closed and not before.strip() and inside.strip() and after.strip())


def _as_text(value: Any) -> str:
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    return value if isinstance(value, str) else "" if value is None else str(value)


def _as_reference(value: Any) -> str:
    """A reference as text; empty, which no answer equals, for what is neither text nor a number."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return str(value) if math.isfinite(value) else ""
    return _as_text(value).strip() if isinstance(value, str | bytes) else ""


# --- comparing processes ------------------------------------------------------------------------------------------


class WorkerGone(Exception):
    """The comparing process ended by itself or was ended from outside."""


class Worker:
    """One comparing process: `reward_worker.py`, spoken to over its standard input and output."""

    START_SECONDS = 60.0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(settings.memory_mb << 20), str(settings.cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # the same verdicts in every process, and no module of this folder in place of a library's
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"},
        )
        self.poll = select.poll()  # select.select fails in a process with more than 1,024 open files
        self.poll.register(self.process.stdout, select.POLLIN)

    def ask(self, answer: str | None, reference: str) -> str:
        """The verdict on one answer, or without an answer on the reference.

        Raises:
            TimeoutError: none came within `timeout` seconds of dispatch.
            WorkerGone: the process ended.
        """
        if not self.ready:  # importing sympy is not the answer's fault
            self._line(time.monotonic() + self.START_SECONDS)
            self.ready = True
        try:
            self.process.stdin.write(json.dumps({"answer": answer, "reference": reference}).encode() + b"\n")
        except OSError as e:
            raise WorkerGone from e
        return self._line(time.monotonic() + self.settings.timeout)

    def _line(self, deadline: float) -> str:
        data = b""
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not self.poll.poll(left * 1000):
                raise TimeoutError
            chunk = os.read(self.process.stdout.fileno(), 4096)
            if not chunk:
                raise WorkerGone
            data += chunk
        return data.decode().strip()

    def stop(self, ending: bool = False) -> int:
        """End the process, leave nothing of it behind, and say how it ended (`Popen.returncode`)."""
        if ending:  # let it tell by itself why
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
        self.process.kill()
        code = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        return code


class Pool:
    """Comparing processes for many threads. Time spent waiting for a free one counts against nobody's limit."""

    ATTEMPTS = 3
    OUTSIDE = frozenset((-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT))

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()  # last in, first out: one that has started
        for _ in range(settings.processes):
            self.slots.put(None)

    def ask(self, answer: str | None, reference: str) -> str:
        """What the process says (see `judge` in reward_worker.py), `timeout` if its limits of time or memory ended it.

        A process that was killed from outside says nothing about the answer, which then goes to another one.

        Raises:
            RuntimeError: processes end before they are ready: a broken installation, never an answer's doing.
        """
        worker, dispatched = self.slots.get(), False
        try:
            for _ in range(self.ATTEMPTS):
                worker = worker or Worker(self.settings)
                try:
                    return worker.ask(answer, reference)
                except (TimeoutError, WorkerGone) as e:
                    gone = isinstance(e, WorkerGone)
                    code, dispatched = worker.stop(ending=gone), worker.ready
                    worker = None
                    if dispatched and not (gone and code in self.OUTSIDE):
                        return "timeout"
                    logger.warning("a comparing process ended with code %s; trying another", code)
            if dispatched:
                return "timeout"
            raise RuntimeError(f"{WORKER} does not start with {sys.executable}; its message is in this process's log")
        except BaseException:
            if worker is not None:
                worker.stop()  # it may still owe an answer
                worker = None
            raise
        finally:
            self.slots.put(worker)

    def close(self) -> None:
        """End the processes that are not at work; the next call starts new ones."""
        idle: list[Worker | None] = []
        with contextlib.suppress(queue.Empty):
            for _ in range(self.settings.processes):
                idle.append(self.slots.get_nowait())
        for worker in idle:
            if worker is not None:
                worker.stop()
            self.slots.put(None)


_pools: dict[tuple, Pool] = {}
_lock = threading.Lock()


def _pool(settings: Settings) -> Pool:
    key = settings.processes, settings.timeout, settings.cpu_seconds, settings.memory_mb
    with _lock:
        if key not in _pools:
            _pools[key] = Pool(settings)
        return _pools[key]


def _forget_pools() -> None:
    """In a forked child: the processes are the parent's."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


def close_pools() -> None:
    """End all idle comparing processes; the next call starts new ones."""
    for pool in _pools.values():
        pool.close()


os.register_at_fork(after_in_child=_forget_pools)
atexit.register(close_pools)


def parses(references: Iterable[Any], **settings: Any) -> list[bool]:
    """For each reference: can an answer written in another way equal it? If not, only the same characters can.

    Raises:
        ValueError: unknown or invalid settings (fields of `Settings`; the limits are those of one comparison).
        RuntimeError: no comparing process can be started (see `Pool.ask`).
    """
    pool = _pool(_settings(tuple(settings.items())))
    with ThreadPoolExecutor(pool.settings.processes) as threads:
        return list(threads.map(lambda reference: pool.ask(None, _as_reference(reference)) == "read", references))


# --- the reward ---------------------------------------------------------------------------------------------------


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **settings: Any
) -> dict[str, float | str]:
    """Score one response, with the paper's reward (Appendix C): accuracy 0 or 1 plus format 0 or 1.

    A plain function: verl calls it in a thread of the reward worker, whose event loop goes on meanwhile. It may be
    called from many threads at once.

    Args:
        data_source: not used; verl hands it to every reward function.
        solution_str: the response, decoded with special tokens skipped.
        ground_truth: the reference, text (LaTeX or plain) or a number.
        extra_info: not used.
        settings: fields of `Settings`.

    Returns:
        Always the same keys: `score` (the weighted sum), `acc`, `format`, `timeout` (the comparison was ended by its
        limits of time or memory), `no_answer`, `bad_reference` (empty or too long; scored 0), each 0.0 or 1.0, and
        `pred`, the content of the box.

    Raises:
        ValueError: unknown or invalid settings.
        RuntimeError: no comparing process can be started (see `Pool.ask`). Responses raise nothing.
    """
    chosen = _settings(tuple((k, v) for k, v in settings.items() if k not in FROM_VERL))
    text, reference = _as_text(solution_str), _as_reference(ground_truth)
    answer = last_box(answer_region(text, chosen))
    verdict = _pool(chosen).ask(answer or "", reference)
    acc, format_ = float(verdict == "right"), float(think_format(text, chosen))
    return {
        "score": chosen.accuracy_weight * acc + chosen.format_weight * format_,
        "acc": acc,
        "format": format_,
        "timeout": float(verdict == "timeout"),
        "no_answer": float(answer is None),
        "bad_reference": float(verdict == "bad_reference"),
        "pred": (answer or "").encode("utf-8", "replace").decode(),
    }
