# SPDX-License-Identifier: Apache-2.0
"""References that may not be what was meant, by the recipe's reward and by how they are written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import ROWS, answers, converted, paper, write

from cw_grpo.datasets.references import doubts, has_lost_backslash, has_several_boxes

SAME_CHARACTERS = "the reward cannot parse the reference: only an answer of the same characters equals it"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("1 + 6 = 7 #### 7", "the reference has ####, which marks the answer of a solution"),
        ("The answer is 5.", "the reference is a sentence"),
        ("all real numbers except 0", "the reference is a sentence"),
        ("\frac{1}{2}", r"the reference has a control character: in JSON a backslash is written twice, as in \\frac"),
        ("\theta", r"the reference has a control character: in JSON a backslash is written twice, as in \\frac"),
        ("\x08ar{x}", r"the reference has a control character: in JSON a backslash is written twice, as in \\frac"),
        ("2\times10^5", r"the reference has a control character: in JSON a backslash is written twice, as in \\frac"),
        ("x \neq 5", r"the reference has a control character: in JSON a backslash is written twice, as in \\frac"),
        ("\\frac{1}{2", SAME_CHARACTERS),
    ],
)
def test_references_in_doubt(reference: str, reason: str) -> None:
    assert doubts(["1", reference, "2"]) == {reference: reason}


def test_references_without_doubt() -> None:
    """Spellings of the benchmarks' answers."""
    plain = ["7", "-3", "0.5", "\\frac{1}{2}", "10\\text{ square meters per second}", "\\text{(A)}", "x^2+2x+1", "1,2"]
    plain += [
        "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}",
        "(-\\infty, 3]",
        "2\\sqrt{3}",
        "1,\t2",
        "3\\pi",
        "70 \\%",
        "0",
    ]
    assert doubts(plain) == {}


@pytest.mark.parametrize("command", [r"\times", r"\frac", r"\neq", r"\right", r"\beta", r"\text{a}", r"\theta_1"])
def test_a_backslash_that_json_took(command: str) -> None:
    assert has_lost_backslash(json.loads(f'"Is {command} lost?"'))
    assert not has_lost_backslash(f"Is {command} here?\n\tIndented, \r\na new line\nu = 3")


def test_questions_that_lost_a_backslash_are_reported() -> None:
    result = converted([{"problem": "Is $\frac12$ a half?", "answer": "1"}, {"problem": "Is\n\t1?", "answer": "2"}])
    assert result.doubtful == {
        r"the question has a control character: in JSON a backslash is written twice, as in \\frac": [
            (0, "Is $\frac12$ a half?")
        ]
    }


@pytest.mark.parametrize(
    ("solution", "several"),
    [
        ("\\boxed{1} or \\boxed{2}", True),
        ("\\boxed{\\frac{1}{2}}, \\boxed{\\frac{1}{2}}", False),
        ("\\boxed{\\boxed{1}}", False),
        ("\\boxed {1}, then $\\frac{3}{4}$, \\boxed{2}", True),
        ("\\boxed{1}, \\boxed{", False),
        ("no box", False),
    ],
)
def test_solutions_with_several_boxes(solution: str, several: bool) -> None:
    assert has_several_boxes(solution) == several


@given(st.lists(st.sampled_from(["1", "2", "{3}"]), min_size=1, max_size=5))
def test_boxes_are_several_if_their_contents_are(contents: list[str]) -> None:
    text = " so ".join(f"\\boxed{{{content}}}" for content in contents)
    assert has_several_boxes(text) == (len(set(contents)) > 1)


def test_several_boxes_are_reported_and_the_last_is_taken() -> None:
    result = converted(
        [{"problem": "a", "solution": "\\boxed{1}, no: \\boxed{2}"}, {"problem": "b", "solution": "\\boxed{3}"}]
    )
    assert answers(result) == ["2", "3"]
    assert result.doubtful == {"the solution has different boxes, and the last is taken": [(0, "2")]}


def test_the_report_and_strict(tmp_path) -> None:
    rows = [dict(row) for row in ROWS]
    for i in range(7):
        rows[i]["answer"] = f"x #### {i}"
    rows[7]["answer"] = "The answer is 5."
    rows[8]["answer"] = "\\frac{1}{" + "2" * 100
    file = write(tmp_path / "in.jsonl", rows)
    text = file.read_text()
    file.write_text(text.replace('"answer": "10"', r'"answer": "\frac{1}{2}"'))
    done = paper("amc23", "--from", file, "--out", tmp_path / "out.parquet")
    assert done.exit_code == 0, done.output
    assert "amc23: 40 of 40 questions in" in done.output
    assert (
        "amc23: kept 7 in doubt: the reference has ####, which marks the answer of a solution (row 0: 'x #### 0', "
        "1: 'x #### 1', 2: 'x #### 2', 3: 'x #### 3', 4: 'x #### 4' and 2 more)\n"
    ) in done.output
    assert "kept 1 in doubt: the reference is a sentence (row 7: 'The answer is 5.')" in done.output
    assert f"{SAME_CHARACTERS} (row 8: '\\\\frac{{1}}{{2222" in done.output and "2" * 50 not in done.output
    assert "written twice, as in \\\\frac (row 9: '\\x0crac{1}{2}')" in done.output

    strict = paper("amc23", "--from", file, "--out", tmp_path / "strict.parquet", "--strict")
    assert f"error: {file} (columns 'problem', 'answer'): kept 7 in doubt" in strict.output
    assert strict.exit_code == 2 and "kept 7 in doubt" in strict.output and "--strict" in strict.output
    assert not (tmp_path / "strict.parquet").exists()
    assert paper("amc23", "--from", write(tmp_path / "good.csv", ROWS), "--out", tmp_path, "--strict").exit_code == 0
