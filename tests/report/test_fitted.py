"""Tables on a terminal: figures stay whole, the width is kept, and nothing in a record can steer the terminal."""

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from optbench.measure.fidelity import Fidelity
from optbench.recipe.load import load_recipe
from optbench.record.record import Record, write_record
from optbench.record.verdict import judge
from optbench.report.accuracy import accuracy_table
from optbench.report.contents import record_tables
from optbench.report.fitted import pack, to_rich
from optbench.report.table import Table, latency_table, tradeoff_table, verdict_table
from optbench.report.text import printable

ROOT = Path(__file__).parent.parent.parent
ESCAPE = "\x1b"


def shown(table: Table, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(*to_rich(table, width), sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def tasks_record(make_record: Callable[..., Record], tasks: int) -> Record:
    """A record of real length: every step of a recipe's, three tasks, names as long as users' are."""
    record = make_record(accuracy=({f"q{index}": 0.5 for index in range(9)}, {f"q{index}": 0.4 + index / 90 for index in range(9)}))
    before, after = record.points
    names = ["beir:chorus", "xquadr:en", "sts:benchmark"][:tasks]

    def with_tasks(point: object, label: str) -> object:
        results = tuple(record.final.accuracy[0].model_copy(update={"task": name}) for name in names)
        return after.model_copy(update={"label": label, "accuracy": results})

    labels = ["base", "0 export_onnx", "1 fuse_graph", "2 convert_openvino", "3 quantize_static_qdq"]
    points = tuple(with_tasks(before, label) for label in labels)
    return record.model_copy(update={"points": points})


def test_tables_of_a_record_with_three_tasks_fit_80_columns_with_every_figure_whole(make_record: Callable[..., Record]) -> None:
    record = tasks_record(make_record, 3)
    tables = [tradeoff_table(record), accuracy_table(record), latency_table(record), verdict_table(judge(record))]
    for table in tables:
        assert table is not None
        text = shown(table)
        assert "continued" not in text
        assert max(map(len, text.splitlines())) <= 80
        # One line a row: nothing was folded.
        assert len(text.splitlines()) <= len(table.rows) + 3 + len(table.note) // 40 + 1
        for row in table.rows:
            assert any(all(cell in line for cell in row) for line in text.splitlines()), row
    accuracy = accuracy_table(record)
    assert accuracy is not None
    assert len(accuracy.rows) == 3 * 5 + 4  # the mean over tasks of each step


@given(
    values=st.lists(st.text(st.characters(codec="ascii", categories=["L", "Nd"]), min_size=1, max_size=30), min_size=1, max_size=12),
    limit=st.integers(min_value=20, max_value=200),
)
def test_every_figure_is_on_one_line_beside_its_column(values: list[str], limit: int) -> None:
    pairs = [(f"c{index}", value) for index, value in enumerate(values)]
    lines = pack(pairs, limit)
    assert [pair for line in lines for pair in line.split("   ")] == [f"{column}: {value}" for column, value in pairs]
    for line in lines:
        assert len(line) <= limit or "   " not in line


def test_rows_of_a_table_too_wide_for_the_screen_are_lists_and_no_fragments() -> None:
    table = Table("Wide", ["model", *(f"column {index}" for index in range(12))], [["openvino", *["1234.56 ±0.01"] * 12]])
    text = shown(table, 60)
    assert text.count("openvino") == 1
    for index in range(12):
        assert f"column {index}: 1234.56 ±0.01" in text
    assert max(map(len, text.splitlines())) <= 60


def test_every_table_of_a_record_is_whole_on_60_columns(make_record: Callable[..., Record]) -> None:
    record = tasks_record(make_record, 3)
    for table in [*record_tables(record), verdict_table(judge(record))]:
        text = shown(table, 60)
        assert max(map(len, text.splitlines())) <= 60
        first = [row[0] for row in table.rows]
        heads = sum(all(column in line for column in table.columns[1:]) for line in text.splitlines())
        if heads:  # a table: its columns stand in one line, and each row beginning once
            assert heads == 1
        else:
            assert sum(line.startswith(tuple(set(first))) for line in text.splitlines()) == len(first)


def test_prose_is_folded_and_keeps_its_words() -> None:
    table = Table("Prose", ["step", "reason"], [["fuse_graph", "the second input of the product is no constant, so nothing can be packed"]])
    lines = shown(table, 50).splitlines()
    assert max(map(len, lines)) <= 50
    assert "constant" in " ".join(lines)


def test_markup_and_escapes_of_a_stranger_are_shown_and_not_obeyed() -> None:
    hostile = f"[red]name[/red]{ESCAPE}[2J{ESCAPE}]0;title\x07"
    text = shown(Table(hostile, ["what", hostile], [[hostile, hostile]], hostile))
    assert "[red]name[/red]" in text
    assert ESCAPE not in text
    assert "\x07" not in text
    assert printable("tab\there") == "tab\N{REPLACEMENT CHARACTER}here"


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What the command line prints where stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "80", **environment}
    with subprocess.Popen([sys.executable, "-m", "optbench", *arguments], cwd=ROOT, env=env, stdout=follower, stderr=follower) as process:
        os.close(follower)
        found = b""
        # Linux reports the other end's closing as an error.
        while chunk := read_or_end(leader):
            found += chunk
        process.wait()
    os.close(leader)
    return found.decode()


def read_or_end(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


COLOR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])m")


def test_worst_hostile_text_of_each_step_has_a_column_and_the_note_says_of_how_many(make_record: Callable[..., Record]) -> None:
    record = make_record()
    worst = Fidelity(mean=0.9871, p01=0.95, minimum=0.9416, worst=7, n_texts=300)
    points = (*record.points[:-1], record.final.model_copy(update={"hostile_to_base": worst}))
    table = tradeoff_table(record.model_copy(update={"points": points}))
    assert table.columns[-1] == "hostile"
    assert [row[-1] for row in table.rows] == ["1"] * (len(points) - 1) + ["0.9416"]
    assert "the worst of 300 texts" in table.note
    assert "mean at the last step 0.9871" in table.note
    text = shown(table)
    assert "continued" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "hostile" not in shown(tradeoff_table(record))  # a record of an earlier schema


def test_color_is_for_terminals_and_no_color_turns_it_off(make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = str(write_record(make_record(), tmp_path))
    assert COLOR.search(on_a_terminal("report", path))
    assert not COLOR.search(on_a_terminal("report", path, NO_COLOR="1"))
    piped = subprocess.run([sys.executable, "-m", "optbench", "report", path], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ESCAPE not in piped.stdout + piped.stderr
    assert max(map(len, piped.stdout.splitlines())) <= 80


def test_recipes_of_this_repository_have_step_names_that_fit(make_record: Callable[..., Record]) -> None:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        record = make_record()
        point = record.final
        points = tuple(point.model_copy(update={"label": f"{index} {step.step}"}) for index, step in enumerate(recipe.steps))
        text = shown(tradeoff_table(record.model_copy(update={"points": (record.points[0], *points), "recipe": recipe})))
        assert "continued" not in text
