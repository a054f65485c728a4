"""A table's two files: what a spreadsheet and a program read."""

import csv
import datetime as dt
import io

import pytest

from console.figures import Column, Plot, Table, as_csv, number_of
from feedback.quality.estimate import Estimate, missing


def lines(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO("".join(as_csv(table)))))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x","y")'])
def test_a_text_is_no_formula(text: str) -> None:
    table = Table("t", "T", [Column("who", "Who", "user"), Column("n", "N", "number")], [{"who": text, "n": -3}])
    assert lines(table) == [["who", "n"], [f"'{text}", "-3"]]


def test_quotes_commas_and_lines_stay_in_their_cell() -> None:
    table = Table("t", "T", [Column("who", "Who")], [{"who": 'a "b", c\nd\u202e'}, {"who": None}])
    assert lines(table) == [["who"], ['a "b", c\nd\u202e'], [""]]


def test_what_is_drawn() -> None:
    day = {"day": dt.date(2026, 11, 2), "alpha": Estimate(0.5, 0.4, 0.6, n=9)}
    plot = Plot(("alpha",), "alpha")
    columns = [Column("day", "Day", "day"), Column("alpha", "Alpha", "figure")]
    assert Table("t", "T", columns, [day], plot=plot).drawn
    gap = {"day": dt.date(2026, 11, 9), "alpha": missing("nobody")}
    empty = Table("t", "T", columns, [gap], plot=plot)
    assert not empty.drawn
    assert str(empty.undefined) == "nobody"
    assert not Table("t", "T", columns, [day]).drawn
    assert [number_of(x) for x in (Estimate(float("nan")), 3, "3", None, True)] == [None, 3, None, None, None]
