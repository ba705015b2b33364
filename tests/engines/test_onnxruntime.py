"""The onnxruntime engine: its options reach ONNX Runtime, and what it must refuse is refused."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.onnxruntime import OnnxRuntime, Optimizer
from optbench.errors import EngineError
from optbench.machine.cpu import usable_threads


def artifact_of(folder: Path, model: onnx.ModelProto) -> Artifact:
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx/model.onnx").write_bytes(model.SerializeToString())
    return Artifact(Kind.ONNX, folder, "unsealed")


def model_of(operator: str = "Add", domain: str = "", location: str | None = None, output: str = "sentence_embedding") -> onnx.ModelProto:
    """One node over `input_ids` and a weight that lies at `location`."""
    weight = TensorProto(name="weight", data_type=TensorProto.INT64, dims=[1])
    if location is None:
        weight.int64_data.append(1)
    else:
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": "8"}.items():
            weight.external_data.add(key=key, value=value)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")]
    graph = helper.make_graph(
        [helper.make_node(operator, ["input_ids", "weight"], [output], domain=domain)],
        "graph",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.INT64, ["batch", "tokens"])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def settings(engine: OnnxRuntime) -> dict[str, Any]:
    options = engine._session_options()
    keys = ("session.intra_op.allow_spinning", "session.disable_prepacking", "session.x64quantprecision")
    return {
        "threads": options.intra_op_num_threads,
        "inter": options.inter_op_num_threads,
        "level": str(options.graph_optimization_level).rsplit(".", 1)[-1],
        "mode": str(options.execution_mode).rsplit(".", 1)[-1],
        "arena": options.enable_cpu_mem_arena,
        **{key: options.get_session_config_entry(key) for key in keys},
    }


def test_defaults_take_the_threads_this_process_may_use() -> None:
    assert settings(OnnxRuntime()) == {
        "threads": usable_threads(),
        "inter": 1,
        "level": "ORT_ENABLE_ALL",
        "mode": "ORT_SEQUENTIAL",
        "arena": True,
        "session.intra_op.allow_spinning": "1",
        "session.disable_prepacking": "0",
        "session.x64quantprecision": "0",
    }


def test_options_reach_onnxruntime() -> None:
    engine = OnnxRuntime(
        threads=3,
        inter_op_threads=2,
        graph_optimization="basic",
        execution_mode="parallel",
        spinning=False,
        prepacking=False,
        memory_arena=False,
        saturation_safe=True,
    )
    assert settings(engine) == {
        "threads": 3,
        "inter": 2,
        "level": "ORT_ENABLE_BASIC",
        "mode": "ORT_PARALLEL",
        "arena": False,
        "session.intra_op.allow_spinning": "0",
        "session.disable_prepacking": "1",
        "session.x64quantprecision": "1",
    }


@pytest.mark.parametrize("options", [{"execution_mode": "parallel"}, {"graph_optimization": "disable"}, {"prepacking": False}])
def test_options_change_no_embedding(make_artifact: Callable[..., Artifact], options: dict[str, Any]) -> None:
    ids = np.array([[4, 9, 11, 5]])
    plain, other = (OnnxRuntime(threads=1, **chosen).open(make_artifact(Kind.ONNX)) for chosen in ({}, options))
    # Unit vectors: 1e-5 is some hundred times what float32 loses when a graph is rewritten, and a thousandth of what a wrong one moves.
    np.testing.assert_allclose(plain.embed(ids, ids // ids), other.embed(ids, ids // ids), atol=1e-5)


def run_verbose(path: Path, disabled: list[str]) -> set[str]:
    """Names of the graph transformers that ONNX Runtime says it applies."""
    program = (
        "import sys, onnxruntime as ort; options = ort.SessionOptions(); options.log_severity_level = 0\n"
        "ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'], disabled_optimizers=sys.argv[2:])"
    )
    printed = subprocess.run([sys.executable, "-c", program, path, *disabled], capture_output=True, text=True, check=True)
    return set(re.findall(r"Applying graph transformer (\w+)", printed.stderr))


def test_every_optimizer_name_is_one_that_this_onnxruntime_runs_and_leaves_out(make_artifact: Callable[..., Artifact]) -> None:
    path = make_artifact(Kind.ONNX).main_file
    names = set(get_args(Optimizer))
    # Some run only on CPUs whose int8 products want another sign.
    assert names - run_verbose(path, []) <= {"QDQS8ToU8Transformer"}
    assert run_verbose(path, sorted(names)) & names == set()


def test_unknown_optimizer_is_refused_where_onnxruntime_would_ignore_it() -> None:
    with pytest.raises(ValidationError, match="SkipLayerNormFusion"):
        OnnxRuntime.model_validate({"disabled_optimizers": ["SkipLayerNormFussion"]})


@pytest.mark.parametrize("location", ["../weight.bin", "{absolute}", "link.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    outside = tmp_path / "weight.bin"
    np.array([1]).tofile(outside)
    artifact = artifact_of(tmp_path / "artifact", model_of(location=location.format(absolute=outside)))
    if location == "link.bin":
        (artifact.path / "onnx/link.bin").symlink_to(outside)
    else:
        shutil.copy(outside, artifact.path / "weight.bin")
    with pytest.raises(EngineError, match=r"cannot open it: .*External data path"):
        OnnxRuntime(threads=1).open(artifact)


def test_operator_of_a_library_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"some\.library:Custom"):
        OnnxRuntime(threads=1).open(artifact_of(tmp_path, model_of("Custom", "some.library")))


def test_graph_without_the_output_is_refused_with_what_it_gives(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError,
        match="outputs hidden; expected inputs input_ids and attention_mask and output sentence_embedding: export it with export_onnx",
    ):
        OnnxRuntime(threads=1).open(artifact_of(tmp_path, model_of(output="hidden")))


def test_broken_file_is_an_error_and_leaves_stderr_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact = artifact_of(tmp_path, model_of())
    artifact.main_file.write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime cannot open it: .*Protobuf parsing failed"):
        OnnxRuntime(threads=1).open(artifact)
    assert capfd.readouterr() == ("", "")


def test_failing_run_leaves_stderr_alone(make_artifact: Callable[..., Artifact], capfd: pytest.CaptureFixture[str]) -> None:
    session = OnnxRuntime(threads=1).open(make_artifact(Kind.ONNX))
    with pytest.raises(EngineError, match=r"failed on \(1, 70\) tokens"):
        session.embed(np.full((1, 70), 5), np.ones((1, 70), np.int64))
    assert capfd.readouterr() == ("", "")
