"""Fuzzing of what may come from strangers: whatever a recipe or a record says, only the error for it comes out."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optbench.artifact.folder import open_artifact
from optbench.artifact.manifest import MANIFEST
from optbench.errors import ArtifactError, BaseModelError, RecipeError, RecordError
from optbench.model.checkpoint import read_body
from optbench.recipe.load import load_recipe
from optbench.record.record import Record, read_record

RECIPE = (Path(__file__).parents[2] / "recipes" / "minilm-l6.yaml").read_text()
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)
# A hundred of each: the parsers are pydantic's and ruamel's, and what is ours is reached by small changes.
bounded = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def paths_in(document: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a document."""
    below = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [path, *(inner for key, value in below for inner in paths_in(value, (*path, key)))]


def changed(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at one place."""
    if not path:
        return value
    copy: Any = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = changed(document[path[0]], path[1:], value)
    return copy


@bounded
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | values.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_file_says_only_a_recipe_or_a_record_error_comes_out(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(content)
        with pytest.raises(RecipeError):
            load_recipe(path)
        with pytest.raises(RecordError):
            read_record(path)


@bounded
@given(data=st.data())
def test_changed_recipe_is_read_or_is_a_recipe_error(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(RECIPE)))
    length = data.draw(st.integers(0, 12))
    insert = data.draw(st.text(max_size=8) | st.sampled_from(["&a [*a]", "!!python/object:os.system x", "<<: ", "1e999", "\t", "? ", "- "]))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        path.write_bytes((RECIPE[:position] + insert + RECIPE[position + length :]).encode("utf-8", "surrogatepass"))
        try:
            load_recipe(path)
        except RecipeError as error:
            assert str(error).startswith(f"{path}:")  # noqa: PT017


@bounded
@given(data=st.data())
def test_changed_record_is_read_or_is_a_record_error(data: st.DataObject, make_record: Callable[..., Record]) -> None:
    document = json.loads(make_record(rounds=3).model_dump_json())
    path_in = data.draw(st.sampled_from(paths_in(document)))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "record.json"
        path.write_text(json.dumps(changed(document, path_in, data.draw(values))))
        try:
            read_record(path)
        except RecordError as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"[" * 5_000, b'{"a":' * 5_000, b"9" * 100_000, b'{"schema_version": 2' + b" " * 1000])
def test_nesting_and_numbers_without_end_are_errors_and_no_bugs(content: bytes, tmp_path: Path) -> None:
    for name in (MANIFEST, "file", "config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "file")
    with pytest.raises(RecordError):
        read_record(tmp_path / "file")
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path)
    with pytest.raises(BaseModelError):
        read_body(tmp_path)
