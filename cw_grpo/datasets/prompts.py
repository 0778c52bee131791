# SPDX-License-Identifier: Apache-2.0
"""Prompts: the chat around a question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

from cw_grpo.paths import RECIPE

ROLES = ("system", "user", "assistant")


class Prompt:
    """A chat around a question, read from a YAML list of ``role`` and ``content``.

    A content is a Jinja template: ``{{ question }}``, or another value that the data offers. Braces as in
    ``\\boxed{}`` stand for themselves.

    Raises:
        ValueError: the file cannot be read, is not such a list, or has no place for the question; names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            messages = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"prompt {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
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
            raise ValueError(f"prompt {path} has no place for the question: write {{{{ question }}}} somewhere")

    def render(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        """The chat with ``values`` filled in.

        Raises:
            ValueError: the prompt asks for a value that the data lacks; lists the values there are.
        """
        try:
            return [{"role": role, "content": template.render(values)} for role, template in self.messages]
        except jinja2.UndefinedError as error:
            raise ValueError(f"prompt {self.path}: {error}; the data offers: {', '.join(sorted(values))}") from error


def default_prompt() -> Path:
    """The recipe's prompt for any question: step by step, the answer in a box."""
    return RECIPE / "prompts" / "boxed.yaml"


def paper_prompt() -> Path:
    """The paper's training prompt (Figure 4)."""
    return RECIPE / "prompts" / "paper.yaml"
