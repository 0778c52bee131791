# SPDX-License-Identifier: Apache-2.0
"""Local files of each format, and what is not a table."""

from __future__ import annotations

import datetime
import json
import os
import re
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import answers, converted, paper, write

from cw_grpo.datasets.reading import read_file


def rows_of(path, content: bytes | str) -> list[dict]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(path)


# --- csv ----------------------------------------------------------------------------------------------------------


def test_a_csv_cell_is_text(tmp_path) -> None:
    rows = rows_of(tmp_path / "a.csv", 'problem,answer\nq,540.0\nr,007\nNA,nan\n"a\nb","1,000"\nlast,\nshort\n')
    result = converted(rows)
    assert answers(result) == ["540.0", "007", "nan", "1,000"]
    assert result.skipped == {"no answer": [4, 5]}


# --- json ---------------------------------------------------------------------------------------------------------

NUMBERS = ["0.3", "4.5e33", "540.0", "-0", "123456789012345678901234567890", "0.30000000000000000001", "1E-400"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("mixed", ["", '"x"'])
def test_json_numbers_are_read_as_written(tmp_path, suffix: str, mixed: str) -> None:
    written = [*NUMBERS, mixed] if mixed else NUMBERS
    objects = [f'{{"problem": "q{i}", "answer": {number}}}' for i, number in enumerate(written)]
    content = f"[{', '.join(objects)}]" if suffix == ".json" else "\n".join(objects)
    assert answers(converted(rows_of(tmp_path / f"a{suffix}", content))) == [n.strip('"') for n in written]


@given(st.from_regex(re.compile(r"-?(0|[1-9]\d{0,400})(\.\d{1,40})?([eE][+-]?\d{1,4})?", re.ASCII), fullmatch=True))
def test_any_json_number_is_read_as_written(tmp_path_factory, number: str) -> None:
    path = tmp_path_factory.getbasetemp() / "number.json"
    assert rows_of(path, f'{{"problem": "q", "answer": [{number}]}}') == [{"problem": "q", "answer": [number]}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_columns_of_json_are_rows(tmp_path, suffix: str) -> None:
    content = '{"problem": ["q", "r"],\n "answer": [1, ["2", "3"]]}'
    assert answers(converted(rows_of(tmp_path / f"a{suffix}", content))) == ["1", "2, 3"]
    with pytest.raises(ValueError, match=r"a.json: its columns have different lengths: {'problem': 1, 'answer': 2}"):
        rows_of(tmp_path / "a.json", '{"problem": ["q"], "answer": [1, 2]}')


def test_one_object_is_one_row(tmp_path) -> None:
    row = {"problem": "q", "answer": ["1", "2"]}
    assert rows_of(tmp_path / "a.json", json.dumps(row)) == [row]


def test_json_of_other_programs(tmp_path) -> None:
    """Byte order marks, other encodings, Windows' line ends, blank lines, separators of Unicode within text."""
    row = {"problem": "q\u2028\x85ü", "answer": "1"}
    text = json.dumps(row, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert rows_of(tmp_path / "a.jsonl", f"{text}\r\n\r\n{text}".encode(encoding)) == [row, row]
    assert rows_of(tmp_path / "a.csv", "\ufeffproblem,answer\nq,1\n") == [{"problem": "q", "answer": "1"}]


def test_a_key_given_twice_is_skipped_by_row(tmp_path) -> None:
    content = '{"problem": "q", "answer": 1, "id": 1, "id": 2}\n{"problem": "r", "answer": 1, "answer": 2}\n'
    result = converted(rows_of(tmp_path / "a.jsonl", content))
    assert answers(result) == ["1"]
    assert result.skipped == {"the answer is given twice in one row": [1]}


def test_values_of_every_kind(tmp_path) -> None:
    values = [540, "x", 1.5, None, True, ["$2$"], {"a": 1}, float("nan"), float("inf"), "\ud800", "y" * 10_000_000]
    rows = [{"problem": f"q{i}", "answer": a} for i, a in enumerate(values)]
    result = converted(read_file(write(tmp_path / "a.jsonl", rows)))
    assert answers(result) == ["540", "x", "1.5", "$2$"]
    assert result.skipped == {
        "no answer": [3, 7],
        "the answer is neither text nor a number": [4, 6, 8],
        "the answer has half of a surrogate pair, which is not Unicode text": [9],
        "the answer is longer than the 512 characters that the reward reads": [10],
    }
    nested = [{"problem": {"text": "q"}, "answer": "1"}]
    with pytest.raises(
        ValueError, match="none of 1 rows can be used .columns 'problem', 'answer'.: skipped 1: the question is neither"
    ):
        converted(read_file(write(tmp_path / "b.parquet", nested)))


# --- parquet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "read"),
    [
        (pa.array([540.0, None]), ["540"]),
        (pa.array([0.3, 0.5]), ["0.3", "0.5"]),
        (pa.array([2**63 - 1, 0]), [str(2**63 - 1), "0"]),
        (pa.array([Decimal("0.30"), Decimal("12345678901234567890.12")]), ["0.30", "12345678901234567890.12"]),
        (pa.array([["$2$", "3"], []]), ["$2$, 3"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", None], pa.large_string()), ["a"]),
    ],
)
def test_parquet_columns(tmp_path, column, read: list[str]) -> None:
    pq.write_table(pa.table({"problem": ["q", "r"], "answer": column}), tmp_path / "a.parquet")
    assert answers(converted(read_file(tmp_path / "a.parquet"))) == read


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0.1 + 0.2, 1e22]), "skipped 2: the answer is stored as a float of more than 15 digits"),
        (pa.array([0.5, 16777216.0], pa.float32()), "skipped 2: the answer is stored as float, which does not keep"),
        (pa.array([[0.5], [1.0]], pa.list_(pa.float16())), "skipped 2: the answer is stored as list<.*halffloat>, whi"),
        (pa.array([b"1", b"2"]), "skipped 2: the answer is neither text nor a number"),
        (pa.array([datetime.date(2026, 1, 1)] * 2), "skipped 2: the answer is neither text nor a number"),
        (pa.nulls(2), "skipped 2: no answer"),
    ],
)
def test_parquet_columns_without_answers(tmp_path, column, message: str) -> None:
    pq.write_table(pa.table({"problem": ["q", "r"], "answer": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        converted(read_file(tmp_path / "a.parquet"))


def test_parquet_text_that_is_not_utf8(tmp_path) -> None:
    column = pa.array([b"1", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"problem": ["q", "r"], "answer": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: column 'answer' cannot be read: .*utf-8"):
        read_file(tmp_path / "a.parquet")


def test_damaged_parquet(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"problem": ["q" * 1000], "answer": ["1"]}), path, compression=None)
    whole = path.read_bytes()
    for place in range(4, len(whole) - 8, 37):
        path.write_bytes(whole[:place] + bytes(b ^ 255 for b in whole[place : place + 8]) + whole[place + 8 :])
        try:
            rows = read_file(path)
        except (ValueError, OSError) as error:
            assert str(error).startswith(f"{path}") and "\n" not in str(error)
        else:
            assert len(rows) == 1  # other text, or what is not used


def test_parquet_is_one_file(tmp_path) -> None:
    """A directory's name adds no column."""
    path = tmp_path / "answer=7" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"problem": ["q"]}), path)
    assert read_file(path) == [{"problem": "q"}]


# --- what is not a table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "must end in one of .parquet, .json, .jsonl, .csv"),
        ("a.json", b"garbage", "a.json is not a json table: Expecting value: line 1 column 1"),
        ("a.json", b"", "amc23: no rows"),
        ("a.jsonl", b"\n \n", "amc23: no rows"),
        ("a.json", b"[]", "amc23: no rows"),
        ("a.json", b"{}", "no column for the question .*; the columns are: none"),
        ("a.json", b'[{"problem": "q", "answer": 1}, 2]', "row 1 is not an object"),
        ("a.json", b"3 4", "row 0 is not an object"),
        ("a.jsonl", b'{"problem": "q", "answer": 1}\n{"problem": "r", ', "not a json table: Expecting .*: line 2 col"),
        ("a.json", b'{"data": [{"problem": "q", "answer": "1"}]}', "no column for the question .*'data'"),
        ("a.json", b"[" * 100_000, "too deep in one another"),
        ("a.jsonl", b'{"problem": "\\ud800", "answer": 1}\n', "the question has half of a surrogate pair"),
        ("a.jsonl", b'{"problem": "\xff", "answer": 1}\n', "a.jsonl is not Unicode text"),
        ("a.parquet", b"", "a.parquet is not a parquet table"),
        ("a.parquet", b"PAR1", "a.parquet is not a parquet table"),
        ("a.csv", b"", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\n\xff,1\n", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\nq,1,2\nq,1,2,3\n", "Expected 2 fields in line 2, saw 3 .text with commas needs"),
        ("a.csv", b"problem,answer\n", "amc23: no rows"),
        ("a.csv", b"problem,answer\nWhat is 1,000 + 1?,1001\n", "Expected 2 fields in line 2, saw 3"),
        ("a.csv", b"problem,answer\nWhat is 1 + 1?,2,\n", "Expected 2 fields in line 2, saw 3"),
        ("a.csv", b'problem,answer\n"What,1\n', "a.csv is not a csv table with a header: .*EOF inside string"),
        ("a.csv", b"problem,answer,answer\nq,1,2\n", "two columns have the name 'answer'"),
        ("a.csv", b"problem,answer\nq,1\0\n", "the answer has a NUL character"),
    ],
)
def test_a_file_that_is_not_a_table(tmp_path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(rows_of(tmp_path / name, content))
    done = paper("amc23", "--from", tmp_path / name, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith("error: ") and str(tmp_path / name) in done.output
    assert not (tmp_path / "out").exists()


def test_columns_of_one_name_in_parquet(tmp_path) -> None:
    table = pa.Table.from_arrays([pa.array(["q"]), pa.array(["1"]), pa.array(["2"])], ["problem", "answer", "answer"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: two columns have the name 'answer'"):
        read_file(tmp_path / "a.parquet")


def test_what_is_not_a_file(tmp_path) -> None:
    (tmp_path / "a.json").mkdir()
    os.mkfifo(tmp_path / "b.json")
    for name in "ab":
        with pytest.raises(ValueError, match=f"{name}.json is not a file"):
            read_file(tmp_path / f"{name}.json")
    with pytest.raises(FileNotFoundError, match="c.json: no such file"):
        read_file(tmp_path / "c.json")


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv"])
def test_a_file_that_cannot_be_read(tmp_path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.symlink_to("/proc/self/mem")  # fails for root too
    done = paper("amc23", "--from", path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith(f"error: {path} cannot be read: I")  # Input/output, Invalid argument
    assert not (tmp_path / "out").exists()
