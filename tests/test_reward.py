# SPDX-License-Identifier: Apache-2.0
"""recipe/cw_grpo/reward.py: what it calls right, what it returns, and that nothing hurts it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cw_grpo.job.plan import make_plan

pytest.importorskip("math_verify")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of the comparing processes are Linux's")

ROOT = Path(__file__).parents[1]
REWARD = ROOT / "recipe" / "cw_grpo" / "reward.py"
DATA = Path(__file__).parent / "data"
CASES = yaml.safe_load((DATA / "reward_cases.yaml").read_text("utf-8"))
KINDS = yaml.safe_load((DATA / "reward_kinds.yaml").read_text("utf-8"))
KEYS = ["score", "acc", "format", "timeout", "no_answer", "bad_reference", "pred"]
HANG = "\\binom{1000000000}{500000000}"
QUICK = {"cpu_seconds": 1, "timeout": 4}


def load():
    """The module as verl loads it: by path, and not into sys.modules."""
    from verl.utils.import_utils import load_module

    return load_module(str(REWARD))


@pytest.fixture(scope="module")
def reward():
    return load()


def boxed(answer: str) -> str:
    return f"<think>Let me see.</think>\nSo the answer is \\boxed{{{answer}}}."


# --- what is right ------------------------------------------------------------------------------------------------


def test_labelled_cases(reward):
    accepted, rejected, formats = [], [], []
    for case in CASES:
        response = case.get("response", boxed(case.get("answer", "")))
        result = reward.compute_score("math", response, case["reference"], **case.get("settings", {}))
        if result["acc"] and not case["right"]:
            accepted.append(case)
        if case["right"] and not result["acc"]:
            rejected.append(case)
        if "format" in case and result["format"] != case["format"]:
            formats.append(case)
    assert (accepted, formats) == ([], [])
    assert rejected == [case for case in CASES if case.get("rejected")]
    assert len(rejected) <= 0.01 * sum(case["right"] for case in CASES)


def test_there_are_enough_labelled_cases():
    assert len(CASES) >= 200
    assert sum(case.get("independent", False) for case in CASES) >= len(CASES) / 3
    assert all(case["why"] and case["reference"] is not None for case in CASES)
    seen = [(c.get("answer"), c.get("response"), c["reference"], str(c.get("settings"))) for c in CASES]
    assert len(set(seen)) == len(seen)


def judged(reward, pairs: list[dict]) -> tuple[list[dict], list[dict]]:
    """The wrong answers that are paid and the right answers that are rejected."""
    with ThreadPoolExecutor(4) as threads:
        accs = threads.map(lambda p: reward.compute_score("math", boxed(p["answer"]), p["reference"])["acc"], pairs)
        wrong = [pair for pair, acc in zip(pairs, accs, strict=True) if acc != float(pair["right"])]
    return [pair for pair in wrong if not pair["right"]], [pair for pair in wrong if pair["right"]]


def read_lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize(("name", "size"), [("reward_reports.jsonl", 817), ("reward_unseen.jsonl", 400)])
def test_answers_chosen_to_hurt(reward, name, size):
    pairs = read_lines(name)
    paid, rejected = judged(reward, pairs)
    assert len(pairs) == size
    assert len(paid) <= 0.03 * sum(not pair["right"] for pair in pairs), paid
    assert len(rejected) <= 0.12 * sum(pair["right"] for pair in pairs), rejected


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_mistakes(reward, kind):
    pairs = [
        {"answer": answer, "reference": reference, "right": label != "wrong"}
        for label, rows in KINDS[kind].items()
        for answer, reference in rows
    ]
    paid, rejected = judged(reward, pairs)
    assert paid == []
    assert [[pair["answer"], pair["reference"]] for pair in rejected] == KINDS[kind].get("rejected", [])


def test_cases_of_math_verify(reward):
    """Its public tests, as boxes; those in which the project wants another verdict say why."""
    pairs = read_lines("math_verify_cases.jsonl")
    paid, rejected = judged(reward, pairs)
    assert paid == []
    assert [pair["answer"] for pair in rejected] == [pair["answer"] for pair in pairs if "differs" in pair]
    assert len(rejected) <= 0.03 * len(pairs)


def test_every_benchmark_answer_equals_itself_and_nothing_else(reward):
    golds = [
        gold for file in json.loads((DATA / "benchmark_answers.json").read_text("utf-8")).values() for gold in file
    ]
    following = golds[1:] + golds[:1]
    pairs = [
        {"answer": answer, "reference": gold, "right": answer == gold}
        for gold, nxt in zip(golds, following, strict=True)
        for answer in (gold, *_others(gold, nxt))
    ]
    assert len(golds) == 570
    assert judged(reward, pairs) == ([], [])


@given(st.text(max_size=512) | st.text(st.sampled_from("\\{}^_$&%()[],;=+-0123abxyz πé中 \t\n"), max_size=60))
@settings(deadline=None, max_examples=300)
def test_the_same_text_is_right_whatever_it_is(text):
    reward = _module()
    answer = reward.last_box(f"\\boxed{{{text}}}")
    result = reward.compute_score("math", boxed(text), text)
    if answer is not None and answer == text.strip():
        assert (result["acc"], result["bad_reference"]) == (1.0, 0.0)
    elif not text.strip():
        assert (result["acc"], result["bad_reference"]) == (0.0, 1.0)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12), st.sampled_from(["{}", "\\text{{{}}}", "x={}", "${}$"]))
@settings(deadline=None, max_examples=100)
def test_a_fraction_equals_its_multiples_and_no_neighbour(numerator, denominator, frame):
    reward = _module()
    reference = f"\\frac{{{numerator}}}{{{denominator}}}"
    for factor, off, right in ((7, 0, 1.0), (1, 1, 0.0)):
        answer = frame.format(f"\\frac{{{numerator * factor + off}}}{{{denominator * factor}}}")
        assert reward.compute_score("math", boxed(answer), reference)["acc"] == right


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_a_list_has_no_order_and_a_tuple_has(numbers, random):
    reward = _module()
    shuffled = random.sample(numbers, len(numbers))
    text, other = (", ".join(map(str, some)) for some in (numbers, shuffled))
    assert reward.compute_score("math", boxed(other), text)["acc"] == 1.0
    assert reward.compute_score("math", boxed(f"{other}, {numbers[0]}"), text)["acc"] == 0.0
    assert reward.compute_score("math", boxed(f"({other})"), f"({text})")["acc"] == float(numbers == shuffled)


TABLE = r"\begin{pmatrix}" + r"\\".join("&".join(f"{i * j}" for j in range(8)) for i in range(8)) + r"\end{pmatrix}"
LONG = [
    (r"m\ddot{v}+b\dot{v}+kv=F_0\cos\omega t", r"m\ddot{v}+b\dot{v}+kv-F_0\cos(\omega t)=0"),
    (
        r"\frac{2\pi R^2c^2}{d^2\lambda^5(e^{hc/(\lambda kT)}-1)}",
        r"\frac{2\pi c^2R^2}{\lambda^5(e^{hc/\lambda kT}-1)d^2}",
    ),
    (TABLE, TABLE.replace("pmatrix", "bmatrix")),
    (", ".join(map(str, range(60))), ", ".join(map(str, range(59, -1, -1)))),
    ("+".join(rf"\sqrt{{{k}}}" for k in range(2, 30)), "+".join(rf"\sqrt{{{k}}}" for k in range(29, 1, -1))),
]


@pytest.mark.parametrize(("answer", "reference"), LONG)
def test_ordinary_answers_take_little_time(reward, answer, reference):
    """Less than 0.3 processor seconds, in a process that has seen a formula of the kind."""
    one = {"processes": 1}
    assert reward.compute_score("math", boxed(answer), reference, **one)["acc"] == 1.0
    answer, reference = (t.replace("v", "u").replace("R", "S").replace("1", "7") for t in (answer, reference))
    before = processor_seconds()
    assert reward.compute_score("math", boxed(answer), reference, **one)["acc"] == 1.0
    assert processor_seconds() - before < 0.3


def processor_seconds() -> float:
    return sum(sum(child.cpu_times()[:2]) for child in children())


def test_references_that_only_their_own_text_equals(reward):
    read = [
        "5",
        r"\frac\pi2",
        "x=3",
        "(1,2)",
        "Evelyn",
        "[1,2)",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        "y=2x+3",
        7,
        "(C)",
    ]
    unread = [r"\int_0^1 f", r"\triangle ABC", r"p\equiv 1\pmod 4", r"\frac{", "9^{9^{9^9}}!?", "", None, "x" * 3000]
    assert reward.parses([*read, *unread], cpu_seconds=1) == [True] * len(read) + [False] * len(unread)
    with pytest.raises(ValueError, match="unknown"):
        reward.parses(["5"], wieght=1)


def _others(gold: str, following: str):
    """The next row's gold where it is another answer, gold + 1, a constant, empty."""
    plain = gold.replace(",", "").replace(" ", "")
    if following.replace(" ", "") != gold.replace(" ", ""):
        yield gold, following
    yield gold, str(int(plain) + 1) if plain.lstrip("-").isdigit() else f"{gold}+1"
    yield gold, "-987654"
    yield gold, ""


def test_sums_of_reasoning_gym(reward):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    plain = {"require_think": False, "format_weight": 0}
    for item in reasoning_gym.create_dataset("chain_sum", size=20, seed=1):
        right = reward.compute_score("sums", f"It is \\boxed{{{item['answer']}}}", item["answer"], **plain)
        wrong = reward.compute_score("sums", f"It is \\boxed{{{int(item['answer']) + 1}}}", item["answer"], **plain)
        assert (right["score"], wrong["score"]) == (1.0, 0.0)


# --- what is returned ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        ({}, 2.0),
        ({"format_weight": 0}, 1.0),
        ({"accuracy_weight": 2, "format_weight": 0.5}, 2.5),
        ({"require_think": False}, 1.0),
        ({"think_in_prompt": True}, 1.0),
    ],
)
def test_weights_and_settings(reward, settings, score):
    assert reward.compute_score("math", boxed("5"), "5", **settings)["score"] == score


@pytest.mark.parametrize("reference", [None, "", "   ", [], {}, True, float("nan"), "x" * 3000])
def test_a_reference_that_is_empty_or_too_long_is_counted_and_never_right(reward, reference):
    text = reference if isinstance(reference, str) else str(reference)
    result = reward.compute_score("math", boxed(text[:500]), reference)
    assert (result["acc"], result["bad_reference"], result["score"]) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("reference", [5, 5.0, "5", b"5", " 5 ", "\\boxed{5}"])
def test_references_of_other_types(reward, reference):
    assert reward.compute_score("math", boxed("5"), reference)["acc"] == 1.0


@pytest.mark.parametrize(
    "response",
    [
        None,
        5,
        b"\\boxed{7}",
        b"\xff\xfe",
        "",
        "\ud800",
        "\\boxed{\ud800\udfff}",
        "\x00",
        "x" * 2_000_000,
        "\\boxed{" * 150_000,
        "\\boxed{5}" * 120_000 + "\\boxed{",
        "{" * 1_000_000 + "\\boxed{5",
        "\\" * 1_000_000,
        "<think>" * 150_000,
    ],
)
def test_any_response_gives_the_same_keys_and_soon(reward, response):
    reward.compute_score("math", "", "5")  # starts the process
    started = time.process_time() + processor_seconds()
    result = reward.compute_score("math", response, "5")
    assert time.process_time() + processor_seconds() - started < 3
    assert list(result) == KEYS
    assert all(isinstance(result[key], float) for key in KEYS[:-1])
    result["pred"].encode("utf-8")


def test_no_answer_is_counted(reward):
    assert reward.compute_score("math", "<think>\\boxed{5}", "5")["no_answer"] == 1.0
    assert reward.compute_score("math", boxed("5"), "5")["no_answer"] == 0.0
    assert reward.compute_score("math", boxed("5" * 513), "5")["no_answer"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wieght": 1}, "unknown"),
        ({"think_in_prompt": "yes"}, "think_in_prompt"),
        ({"accuracy_weight": True}, "accuracy_weight"),
        ({"format_weight": float("nan")}, "format_weight"),
        ({"processes": 0}, "processes"),
        ({"cpu_seconds": 0.5}, "cpu_seconds"),
        ({"memory_mb": 10}, "memory_mb"),
    ],
)
def test_bad_settings_are_loud(reward, settings, message):
    with pytest.raises(ValueError, match=message):
        reward.compute_score("math", boxed("5"), "5", **settings)


def test_arguments_that_verl_adds_are_no_settings(reward):
    verls = {"reward_router_address": "localhost:1", "reward_model_tokenizer": object()}
    assert reward.compute_score("math", boxed("5"), "5", extra_info={}, **verls)["acc"] == 1.0


# --- boxes and tags -----------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "5", " ", "\\", "<think>", "</think>"]), max_size=30)
)
def test_boxes_are_brace_matched(pieces):
    reward = _module()
    text = "".join(pieces)
    box = reward.last_box(text)
    if box is not None:
        assert box in text
        plain = box.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert plain.count("{") == plain.count("}")
    reward.think_format(text, reward.Settings())


_loaded = []


def _module():
    if not _loaded:
        _loaded.append(load())
    return _loaded[0]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("\\boxed{1} \\boxed{2}", "2"),
        ("\\boxed{1} \\boxed{2", "1"),
        ("\\boxed{\\boxed{3}}", "\\boxed{3}"),
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed{\\}}", "\\}"),
        ("\\boxed {4}", "4"),
        ("\\\\boxed{5}", "5"),
        ("\\boxed{}", None),
        ("\\boxed 6", None),
        ("boxed{7}", None),
        ("} \\boxed{8}", "8"),
        ("{ \\boxed{9}", "9"),
    ],
)
def test_last_box(reward, text, box):
    assert reward.last_box(text) == box


def _tokenizer(folder: Path, special: bool, template: str | None = None) -> str:
    from test_reward_loop import byte_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(folder))
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    else:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_tags_must_survive_decoding(reward, tmp_path):
    good, bad = _tokenizer(tmp_path / "good", special=False), _tokenizer(tmp_path / "bad", special=True)
    reward.check_start(good)
    reward.check_start(bad, require_think=False)
    with pytest.raises(ValueError, match="special tokens"):
        reward.check_start(bad)
    with pytest.raises(ValueError, match="special tokens"):
        reward.compute_score("math", boxed("5"), "5", tokenizer=bad)


def test_a_template_that_opens_the_tag_needs_the_setting(reward, tmp_path):
    template = (
        "{{ messages[0]['content'] }}{% if add_generation_prompt and think | default(true) %}<think>\n{% endif %}"
    )
    path = _tokenizer(tmp_path / "opens", special=False, template=template)
    with pytest.raises(ValueError, match="think_in_prompt=True") as error:
        reward.check_start(path)
    # What it says to set can be set, in a job and in an evaluation.
    override = str(error.value).rpartition(" ")[2]
    for name, scale in (("eval", []), ("cw_grpo", ["scale=tiny"]), ("cw_grpo", ["scale=qwen7b"])):
        config = make_plan([override, *scale], config_name=name).config
        assert config.reward.custom_reward_function.reward_kwargs.think_in_prompt is True
    reward.check_start(path, think_in_prompt=True)
    reward.check_start(path, template_kwargs={"think": False})


# --- nothing hurts it ---------------------------------------------------------------------------------------------


def children() -> list[psutil.Process]:
    running = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in running if "reward_worker.py" in " ".join(p.cmdline())]


def test_a_hang_costs_the_hang_alone(reward):
    answers = ["5", HANG, "5", "5", "9^{9^{9^9}}", "5", "5", "5"]
    with ThreadPoolExecutor(len(answers)) as threads:
        results = list(threads.map(lambda a: reward.compute_score("math", boxed(a), "5", **QUICK), answers))
    assert [r["acc"] for r in results] == [float(a == "5") for a in answers]
    assert [r["timeout"] for r in results] == [float(a != "5") for a in answers]


def test_memory_is_bounded(reward):
    result = reward.compute_score("math", boxed("3^{10^{9}}"), "5", memory_mb=256, cpu_seconds=1, timeout=5)
    assert result["acc"] == 0.0
    assert reward.compute_score("math", boxed("5"), "5", memory_mb=256, cpu_seconds=1, timeout=5)["acc"] == 1.0


def test_it_does_not_block_an_event_loop(reward):
    async def main() -> tuple[float, float, dict]:
        loop, started = asyncio.get_running_loop(), time.monotonic()
        scoring = loop.run_in_executor(None, lambda: reward.compute_score("math", boxed(HANG), "5", **QUICK))
        longest, last = 0.0, time.monotonic()
        while not scoring.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest, last - started, await scoring

    longest, whole, result = asyncio.run(main())
    assert result["timeout"] == 1.0
    assert longest < whole / 2


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_killed_from_outside_costs_nothing(reward, sent):
    assert reward.compute_score("math", boxed("5"), "5")["acc"] == 1.0
    for child in children():
        child.send_signal(sent)
    assert reward.compute_score("math", boxed("5"), "5")["acc"] == 1.0
    with ThreadPoolExecutor(1) as thread:  # now while it is at work, on an answer that takes its two seconds
        scoring = thread.submit(reward.compute_score, "math", boxed(HANG), "5", timeout=4.5)
        time.sleep(1)
        for child in children():
            child.send_signal(sent)
        assert scoring.result()["timeout"] == 1.0
    assert reward.compute_score("math", boxed("5"), "5")["acc"] == 1.0


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(1)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)"])
def test_no_process_is_left_when_the_owner_ends(end):
    script = f"""
        import os, sys, threading
        sys.path.insert(0, {str(REWARD.parent)!r})
        import reward
        score = lambda a: reward.compute_score("math", "\\\\boxed{{" + a + "}}", "5", cpu_seconds=1)
        score("5")
        threading.Thread(target=score, args=("{HANG}",), daemon=True).start()
        score("5")
        print(*[w.process.pid for p in reward._pools.values() for w in p.slots.queue if w], flush=True)
        {end}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids, done.stderr
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_forked_child_starts_processes_of_its_own(reward):
    assert reward.compute_score("math", boxed("5"), "5")["acc"] == 1.0
    before = {child.pid for child in children()}
    pid = os.fork()
    if pid == 0:
        os._exit(int(reward.compute_score("math", boxed("5"), "5")["acc"]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert {child.pid for child in children()} == before
    assert reward.compute_score("math", boxed("5"), "5")["acc"] == 1.0


def test_a_broken_installation_is_loud(tmp_path, monkeypatch):
    reward = load()
    broken = tmp_path / "reward_worker.py"
    broken.write_text("import no_such_module")
    monkeypatch.setattr(reward, "WORKER", broken)
    with pytest.raises(RuntimeError, match="does not start"):
        reward.compute_score("math", boxed("5"), "5")
    with pytest.raises(RuntimeError, match="does not start"):
        reward.check_start()


def test_loading_starts_nothing_and_is_quick():
    script = f"""
        import subprocess, sys, time
        started = time.process_time()
        sys.path.insert(0, {str(REWARD.parent)!r})
        import reward
        assert time.process_time() - started < 1
        assert not reward._pools
        assert not [m for m in sys.modules if m.split(".")[0] in ("sympy", "math_verify", "torch", "verl")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
