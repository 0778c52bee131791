"""Local files of each format, and what is not a table."""

from __future__ import annotations

import pytest
from made_up import answers, converted, paper, write

from cw_grpo.datasets.reading import read_file


def test_a_csv_cell_is_text(tmp_path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('problem,answer\nq,540.0\nr,007\nNA,nan\n"a\nb","1,000"\nlast,\n')
    result = converted(read_file(file))
    assert answers(result) == ["540.0", "007", "nan", "1,000"]
    assert result.skipped == {"no answer": [4]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "must end in one of .parquet, .json, .jsonl, .csv"),
        ("a.json", b"garbage", "a.json is not a json table"),
        ("a.json", b"", "a.json is not a json table"),
        ("a.jsonl", b'{"problem": "\\ud800", "answer": 1}\n', "a.jsonl is not a json table"),
        ("a.parquet", b"PAR1", "a.parquet is not a parquet table"),
        ("a.csv", b"", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\n\xff,1\n", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\nq,1,2\nq,1,2,3\n", "a.csv is not a csv table"),
        ("a.csv", b"problem,answer\n", "amc23: no rows"),
        ("a.csv", b"problem,answer\nWhat is 1,000 + 1?,1001\n", "more cells than its header: put quotes"),
        ("a.csv", b"problem,answer\nWhat is 1 + 1?,2,\n", "more cells than its header: put quotes"),
        ("a.json", b'{"data": [{"problem": "q", "answer": "1"}]}', "no column for the question .*'data'"),
    ],
)
def test_a_file_that_is_not_a_table(tmp_path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        converted(read_file(tmp_path / name))
    assert paper("amc23", "--from", tmp_path / name, "--out", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_values_of_every_kind_come_through_files(tmp_path) -> None:
    rows = [{"problem": f"q{i}", "answer": a} for i, a in enumerate([540, "x", 1.5, None, True, ["$2$"], {"a": 1}])]
    result = converted(read_file(write(tmp_path / "a.jsonl", rows)))
    assert answers(result) == ["540", "x", "1.5", "$2$"]
    assert result.skipped == {"no answer": [3], "answer is neither text nor a number": [4, 6]}
    rows = [{"problem": "q", "answer": 540.0}, {"problem": "r", "answer": None}]
    assert answers(converted(read_file(write(tmp_path / "a.parquet", rows)))) == ["540"]
    nested = [{"problem": {"text": "q"}, "answer": "1"}]
    with pytest.raises(ValueError, match="none of 1 rows can be used: .*1 with question is neither text nor a number"):
        converted(read_file(write(tmp_path / "b.parquet", nested)))
