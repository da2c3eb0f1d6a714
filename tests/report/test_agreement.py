"""The attribute table of a group, by hand."""

from __future__ import annotations

from saga_dist.report.agreement import agreement_rows
from saga_dist.report.attribute_stats import DescribedPair


def said(a: dict[str, str], b: dict[str, str]) -> DescribedPair:
    return DescribedPair(a, b, True, right=True)


def test_values_side_by_side_with_the_most_common_one() -> None:
    group = [
        said({"bill": "red"}, {"bill": "blue"}),
        said({"bill": "red"}, {}),
        said({"bill": "dark"}, {"bill": "tan"}),
    ]
    assert agreement_rows(group, ["bill"]) == [
        {
            "name": "bill",
            "a": {"values": ["red", "red", "dark"], "common": "red", "agree": 2},
            "b": {"values": ["blue", None, "tan"], "common": "blue", "agree": 1},  # the first of two
        }
    ]


def test_an_attribute_that_no_completion_gives_has_no_row() -> None:
    rows = agreement_rows([said({}, {"tail": "long"})], ["bill", "tail"])
    assert [row["name"] for row in rows] == ["tail"]
    assert rows[0]["a"] == {"values": [None], "common": None, "agree": 0}


def test_hostile_words_are_written_out() -> None:
    (row,) = agreement_rows([said({"b\x1b": "\u202ered"}, {})], ["b\x1b"])
    assert row["name"] == "b\\x1b"
    assert row["a"]["values"] == ["\\u202ered"] == [row["a"]["common"]]
