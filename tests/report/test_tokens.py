# SPDX-License-Identifier: Apache-2.0
"""Tokens in the text that a model wrote."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_runs import make_run, read, write_record

from cw_grpo.report.tokens import most_attenuated, most_attenuated_section


def test_without_a_tokenizer_token_ids_are_shown(tmp_path) -> None:
    html, problem = most_attenuated(write_record(tmp_path, 1, 3))
    assert problem is not None
    assert "token ids are shown" in problem and "/no/such/model" in problem
    assert re.search(r"\[\d+\]", html)


def test_what_a_model_wrote_is_text(tmp_path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<script>{i}</script>\x07": i for i in range(2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    html, problem = most_attenuated(write_record(tmp_path / "record", 1, 3, str(tmp_path / "model")))
    assert problem is None and "<script>" not in html and "\x07" not in html
    assert "&lt;script&gt;" in html and "\\x07" in html


def test_a_last_step_without_advantages_is_passed_over(tmp_path) -> None:
    run = Path(make_run(tmp_path / "run", 3, record=True))
    last = run / "record/step-000003.parquet"
    table = pq.read_table(last)
    zeros = pa.array(np.zeros(len(table)), table.schema.field("advantage").type)
    place = table.schema.get_field_index("advantage")
    pq.write_table(table.set_column(place, table.schema.field(place), zeros), last)
    [(_, _, caption)] = most_attenuated_section({"cw_grpo": [read(run)]}).tables
    assert caption == "run, step-000002"
