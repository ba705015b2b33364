"""The registry: what it selects, what it loads, and that its errors are those of pydantic's union."""

import subprocess
import sys
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from optbench.engines import ENGINES, Engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch

ADAPTER: TypeAdapter[Engine] = TypeAdapter(Engine)
UNION: TypeAdapter[Any] = TypeAdapter(Annotated[OnnxRuntime | OpenVino | Torch, Field(discriminator="engine")])


def test_entry_is_an_object_of_the_selected_class_and_serializes_as_it() -> None:
    entry = ADAPTER.validate_python({"engine": "openvino", "threads": 2})
    assert entry == OpenVino(threads=2)
    assert ADAPTER.validate_python(entry) is entry
    for mode in ("python", "json"):
        assert ADAPTER.dump_python(entry, mode=mode) == UNION.dump_python(entry, mode=mode)
    assert ADAPTER.validate_json(ADAPTER.dump_json(entry)) == entry


@pytest.mark.parametrize(
    "data", [None, [], "openvino", {}, {"engine": "vino"}, {"engine": 3}, {"engine": []}, {"engine": "torch", "threads": 0, "speed": 1}]
)
def test_errors_are_those_of_a_union_without_the_name_in_their_location(data: Any) -> None:
    with pytest.raises(ValidationError) as ours:
        ADAPTER.validate_python(data)
    with pytest.raises(ValidationError) as theirs:
        UNION.validate_python(data)

    def told(raised: Any) -> list[tuple[Any, ...]]:
        errors = raised.value.errors(include_url=False)
        return [(error["type"], error["msg"], [part for part in error["loc"] if part not in ENGINES]) for error in errors]

    assert told(ours) == told(theirs)


def test_schema_is_that_of_the_union() -> None:
    assert ADAPTER.json_schema() == UNION.json_schema()


def test_only_the_selected_class_is_imported() -> None:
    program = (
        "import sys\nfrom pydantic import TypeAdapter\nfrom optbench.steps import STEPS, Step\n"
        "TypeAdapter(Step).validate_python({'step': 'convert_openvino'})\n"
        "print(*(name for name in STEPS if f'optbench.steps.{name}' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["convert_openvino"]
