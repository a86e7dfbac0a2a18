"""Journals survive a kill, and every character that a text may hold."""

import pytest

from psychosafe_utils.journals import append_rows, read_rows


@pytest.mark.parametrize("text", ["plain", "two\nlines", "\u2028 \u2029 \x85 \x0b \x0c", "äöü \U0001f331", "\r\n", ""])
def test_what_is_written_is_read_back(tmp_path, text):
    rows = [{"n": 1, "text": text}, {"n": 2, "text": "next"}]
    append_rows(tmp_path / "j.jsonl", rows[:1])
    append_rows(tmp_path / "j.jsonl", rows[1:])
    assert read_rows(tmp_path / "j.jsonl") == rows


def test_a_torn_last_line_goes_and_the_next_row_stands_on_its_own(tmp_path):
    path = tmp_path / "j.jsonl"
    append_rows(path, [{"n": 1}, {"n": 2}])
    path.write_text(path.read_text()[:-4])
    assert read_rows(path) == [{"n": 1}]
    append_rows(path, [{"n": 3}])
    assert read_rows(path) == [{"n": 1}, {"n": 3}]


def test_no_journal_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == []
