# SPDX-License-Identifier: Apache-2.0
"""Prompts: the paper's, and files that are not prompts."""

from __future__ import annotations

import pytest

from cw_grpo.datasets.prompts import Prompt, paper_prompt


def test_the_papers_prompt() -> None:
    """Figure 4, with the backslash and the braces of ``\\boxed{}`` that its typesetting lost."""
    system, user = Prompt(paper_prompt()).render({"question": "Why?"})
    assert user == {"role": "user", "content": "Why?"}
    assert system == {
        "role": "system",
        "content": "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer, and put your final answer within \\boxed{} . The reasoning process and answer are enclosed within "
        "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
        "<answer> answer here </answer>. Note that respond by English, NOT use other languages.",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not YAML"),
        ("role: user", "must be a list of messages"),
        ('- {role: teacher, content: "{{ question }}"}', "must be a list of messages with role"),
        ('- {role: user, content: "{{ question"}', "prompt .*prompt.yaml: "),
        ("- {role: user, content: hello}", "has no place for the question"),
    ],
)
def test_a_bad_prompt_is_rejected_by_its_file(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Prompt(path)
