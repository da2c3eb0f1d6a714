"""Hostile text is inert: in a terminal, in HTML's data block, in a file's encoding."""

from __future__ import annotations

import json

import pytest

from saga_dist.report.text import json_block, shown, shown_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\tßé鸟🐦", "plain\n\tßé鸟🐦"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\ud800b", "a\\ud800b"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("\x9b2J\r", "\\x9b2J\\x0d"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_printable_is_written_out(text: str, expected: str) -> None:
    assert shown(text) == expected
    shown(text).encode("utf-8")


def test_long_text_is_cut_and_says_so() -> None:
    assert shown("x" * 1_000_000, 10) == "x" * 10 + " … (999,990 more characters)"
    assert shown("x" * 10, 10) == "x" * 10


def test_names_stand_on_one_line() -> None:
    assert shown_name(" two\nlines\t here ") == "two lines here"


def test_json_block_cannot_end_its_script_and_reads_back() -> None:
    value = {"</script>": "<!-- & \u2028\u2029 'x' \"y\" \\ 鸟", "n": [1, None, True, -0.5]}
    block = json_block(value)
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == value


def test_json_block_survives_what_no_utf8_file_can_hold() -> None:
    json_block("\ud800").encode("utf-8")


def test_json_block_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_block([float("nan")])
