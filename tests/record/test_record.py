"""Records: written once, read strictly, compared only with their like."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optbench.errors import RecordError
from optbench.record.record import Record, check_comparable, newest_record, read_record, write_record

MakeRecord = Callable[..., Record]


def test_record_comes_back_as_it_was(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    assert read_record(write_record(record, tmp_path)) == record


@pytest.mark.parametrize("schema", [1, 2])
def test_record_of_an_earlier_schema_is_read_without_hostile_texts(schema: int, make_record: MakeRecord, tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path)
    document = json.loads(path.read_text())
    document["schema_version"] = schema
    for point in document["points"]:
        del point["hostile_to_source"], point["hostile_to_base"]
    path.write_text(json.dumps(document))
    record = read_record(path)
    assert record.schema_version == schema
    assert all(point.hostile_to_base is None for point in record.points)


def test_record_is_never_overwritten(make_record: MakeRecord, tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="never overwritten"):
        write_record(make_record(candidate_ms=1), tmp_path)
    assert path.read_bytes() == before


def test_newest_record_is_found_by_time(make_record: MakeRecord, tmp_path: Path) -> None:
    for created in ("2026-11-24T12:00:00Z", "2026-11-24T12:00:05Z", "2025-01-01T00:00:00Z"):
        write_record(make_record(created=created), tmp_path / "records")
    assert newest_record(tmp_path).created == "2026-11-24T12:00:05Z"


def test_folder_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="has no records"):
        newest_record(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "may be truncated"),
        (lambda text: text.replace('"schema_version":3', '"schema_version":99'), "has schema 99"),
        (lambda text: json.dumps({"schema_version": 1}), "broken at"),
        (lambda text: "[]", "has schema None"),
        (lambda text: text.replace('"threads":2', '"threads":"many"'), "broken at threads"),
    ],
)
def test_broken_record_is_refused(damage: Callable[[str], str], said: str, make_record: MakeRecord, tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=said):
        read_record(path)


@given(content=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_record_error_and_nothing_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(RecordError):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 4}, "threads: 2 and 4"),
        ({"isa": "avx2"}, "instruction set: all and avx2"),
        ({"weights": "random"}, "weights: real and random"),
    ],
)
def test_unlike_records_are_not_compared(change: dict[str, object], said: str, make_record: MakeRecord) -> None:
    record = make_record()
    check_comparable([record, make_record()])
    with pytest.raises(RecordError, match=said):
        check_comparable([record, record.model_copy(update=change)])


def test_records_of_different_machines_are_not_compared(make_record: MakeRecord) -> None:
    record = make_record()
    other = record.model_copy(update={"machine": record.machine.model_copy(update={"cpu": "another"})})
    with pytest.raises(RecordError, match=r"machine: .* and another"):
        check_comparable([record, other])
