"""Figures that are read together have equal decimals, in every table of a record and over records."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.record.record import Record, newest_record
from optbench.record.verdict import judge
from optbench.report.contents import record_tables
from optbench.report.decimals import fixed
from optbench.report.headline import headline_tables
from optbench.report.peers import peer_tables, read_peers
from optbench.report.table import Table, is_text_column, verdict_table

ROOT = Path(__file__).parents[2]
RECORDS = [newest_record(folder.parent) for folder in sorted((ROOT / "exported").glob("*/records"))]
NUMBER = re.compile(r"\d+(?:\.(\d+))?")


def uneven(table: Table) -> list[str]:
    """The columns of figures whose cells differ in decimals."""
    found = []
    for index, name in enumerate(table.columns):
        if not is_text_column(table, index):
            numbers = [number for row in table.rows if (number := NUMBER.search(row[index]))]
            if len({len(number[1] or "") for number in numbers}) > 1:
                found.append(f"{table.title}: {name}: {[row[index] for row in table.rows]}")
    return found


def verdict_tables(record: Record) -> list[Table]:
    """The verdict's table for each unit of its findings."""
    verdict = judge(record)
    kept = {unit: [finding for finding in verdict.findings if finding.unit == unit] for unit in ("x", "ms", "relative change", "cosine")}
    return [verdict_table(verdict.model_copy(update={"findings": tuple(findings)})) for findings in kept.values()]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.recipe.name)
def test_columns_of_a_records_tables_have_equal_decimals(record: Record) -> None:
    tables = [*verdict_tables(record), *record_tables(record)]
    assert len(tables) > 5
    assert not [each for table in tables for each in uneven(table)]


def test_columns_over_records_and_peers_have_equal_decimals() -> None:
    peers = [table for run in read_peers(ROOT / "bench" / "peers" / "results") for table in peer_tables(run)]
    assert not [each for table in (*headline_tables(RECORDS), *peers) for each in uneven(table)]


def test_uneven_columns_are_seen() -> None:
    assert uneven(Table("", ["model", "ms"], [["one", "26"], ["two", "25.2"]]))
    assert not uneven(Table("", ["model", "ms"], [["one", "26.0"], ["two", "25.2 (25.1..25.3)"], ["three", ""]]))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([79.12, 25.98], ["79.1", "26.0"]),
        ([211.3, 2.59, 0.836], ["211.30", "2.59", "0.84"]),
        ([2271.4, 433.2], ["2271", "433"]),
        ([0.0123, 4.0], ["0.012", "4.000"]),
        ([0.0, 0.0], ["0.00", "0.00"]),
        ([], []),
    ],
)
def test_smallest_figure_decides(values: list[float], shown: list[str]) -> None:
    assert fixed(values) == shown


@given(st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1))
def test_no_figure_is_off_by_more_than_rounding(values: list[float]) -> None:
    for value, text in zip(values, fixed(values), strict=True):
        # Two significant digits at least: half a unit of the second is 5 %.
        assert float(text) == pytest.approx(value, rel=0.051)


def test_random_weights_are_titled_by_the_recipe_and_latency_only(make_record: Callable[..., Record]) -> None:
    record = make_record(weights="random")
    assert record.recipe.publishes
    verdict = judge(record)
    assert (verdict.outcome, verdict.title) == ("pass", "pass, latency only")
    answers, models = headline_tables([record])
    assert answers.rows[0][:2] == ["gte-large", "pass, latency only"]
    assert models.rows[0][0] == "gte-large"
    assert headline_tables([make_record()])[0].rows[0][0] == record.recipe.publishes
    assert verdict_table(verdict).title == "Verdict: pass, latency only"
