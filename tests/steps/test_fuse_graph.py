"""The step: what it keeps by price, what it says when too little matched, and what it writes."""

import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from optbench.artifact.folder import Artifact, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError, StepError
from optbench.machine.cpu import read_machine
from optbench.steps.base import CandidateLatencies, StepContext
from optbench.steps.fuse_graph import FuseGraph, time_ratio
from optbench.steps.onnx import file as onnx_file

Context = Callable[..., StepContext]


@pytest.fixture(scope="module")
def exported(make_artifact: Callable[..., Artifact]) -> Artifact:
    return make_artifact(Kind.ONNX)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


class FakePrice:
    """Says that graphs with these operators cost a factor more; remembers what it was asked."""

    def __init__(self, **factors: float) -> None:
        self.factors = factors
        self.asked: list[list[Counter[str]]] = []

    def __call__(self, folders: Sequence[Path]) -> list[Mapping[int, float]]:
        graphs = [operators(folder) for folder in folders]
        self.asked.append(graphs)
        costs = [float(np.prod([factor for name, factor in self.factors.items() if graph[name]])) for graph in graphs]
        return [{128: 50.0 * cost, 16: 10.0 * cost} for cost in costs]


def operators(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(folder / Kind.ONNX.main_file).graph)


def embed(folder: Path) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / Kind.ONNX.main_file), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(8).integers(4, 21, (2, 9))
    mask = np.array([[1] * 9, [0] * 4 + [1] * 5])
    outputs: NDArray[np.float32] = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    return outputs


def fuse_graph(*names: str, **options: Any) -> FuseGraph:
    return FuseGraph.model_validate({"fusions": [{"name": name, **options} for name in names]})


def test_faster_fusion_is_kept_and_its_price_is_reported(exported: Artifact, out: Path, make_context: Context) -> None:
    report = fuse_graph("attention").run(exported, out, make_context(values={CandidateLatencies: FakePrice(Attention=0.8)}))
    assert operators(out)["Attention"] == 2
    assert report.matched == {"attention": 2}
    assert report.facts["fusions"] == {
        "attention": {
            "matched": 2,
            "expected": 2,
            "keep": "faster",
            "kept": True,
            "without_ms": {"16": 10.0, "128": 50.0},
            "with_ms": {"16": 8.0, "128": 40.0},
            "time_ratio": 0.8,
            "timed": 1,
        }
    }


def test_slower_fusion_is_reported_and_left_out(exported: Artifact, out: Path, make_context: Context) -> None:
    price = FakePrice(SkipLayerNormalization=1.15, BiasGelu=0.95)
    report = fuse_graph("skip_layer_norm", "bias_gelu").run(exported, out, make_context(values={CandidateLatencies: price}))
    assert operators(out)["SkipLayerNormalization"] == 0
    assert operators(out)["BiasGelu"] == 2
    assert report.matched == {"bias_gelu": 2}
    facts: Any = report.facts["fusions"]
    assert (facts["skip_layer_norm"]["kept"], facts["skip_layer_norm"]["time_ratio"]) == (False, 1.15)
    assert facts["skip_layer_norm"]["matched"] == 4
    assert (facts["skip_layer_norm"]["timed"], facts["bias_gelu"]["timed"]) == (2, 1)


def test_each_fusion_is_priced_on_the_graph_that_those_before_it_left(exported: Artifact, out: Path, make_context: Context) -> None:
    price = FakePrice(Attention=0.9, BiasGelu=1.2, SkipLayerNormalization=0.9)
    fuse_graph("attention", "bias_gelu", "skip_layer_norm").run(exported, out, make_context(values={CandidateLatencies: price}))
    seen = [[[graph[name] for name in ("Attention", "BiasGelu", "SkipLayerNormalization")] for graph in asked] for asked in price.asked]
    assert seen == [
        [[0, 0, 0], [2, 0, 0]],
        [[2, 0, 0], [2, 2, 0]],
        [[2, 2, 0], [2, 0, 0]],
        [[2, 0, 0], [2, 0, 4]],
    ]


def test_fusion_that_costs_a_hair_is_kept(exported: Artifact, out: Path, make_context: Context) -> None:
    report = fuse_graph("bias_gelu").run(exported, out, make_context(values={CandidateLatencies: FakePrice(BiasGelu=1.009)}))
    assert report.matched == {"bias_gelu": 2}


def test_fusion_that_was_slower_in_one_busy_moment_is_kept(exported: Artifact, out: Path, make_context: Context) -> None:
    answers = iter([[{16: 10.0}, {16: 13.0}], [{16: 9.0}, {16: 10.0}]])  # the second time with the fused graph first
    report = fuse_graph("bias_gelu").run(exported, out, make_context(values={CandidateLatencies: lambda folders: next(answers)}))
    facts: Any = report.facts["fusions"]
    assert (facts["bias_gelu"]["kept"], facts["bias_gelu"]["timed"], facts["bias_gelu"]["time_ratio"]) == (True, 2, 0.9)


def test_keep_always_asks_no_price(exported: Artifact, out: Path, make_context: Context) -> None:
    report = fuse_graph("packed_qkv", keep="always").run(exported, out, make_context())
    assert report.matched == {"packed_qkv": 2}
    assert report.facts["fusions"] == {"packed_qkv": {"matched": 2, "expected": 2, "keep": "always", "kept": True}}


def test_keep_faster_without_a_price_is_an_error(exported: Artifact, out: Path, make_context: Context) -> None:
    with pytest.raises(StepError) as error:
        fuse_graph("attention", "bias_gelu").run(exported, out, make_context())
    assert str(error.value) == (
        "fuse_graph: attention, bias_gelu is kept only if it is faster, and cannot be timed here; "
        "run it with optbench apply, or set `keep: always`"
    )


def test_too_few_matches_are_an_error_that_names_each_place(exported: Artifact, tmp_path: Path, out: Path, make_context: Context) -> None:
    shutil.copytree(exported.path, tmp_path / "changed")
    path = tmp_path / "changed" / Kind.ONNX.main_file
    model = ir.load(path)
    gelu = next(node for node in model.graph if node.op_type == "Gelu")
    gelu.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    ir.save(model, path)
    changed = seal(tmp_path / "changed", tmp_path / "sealed", Kind.ONNX, "random")
    with pytest.raises(StepError) as error:
        fuse_graph("bias_gelu", keep="always").run(changed, out, make_context())
    name = "/encoder/layer.0/intermediate/intermediate_act_fn/Gelu"
    assert str(error.value) == (
        f"{changed.main_file}: bias_gelu matched 1 of 2 places; remove it from the recipe, set its `expected`, or export the graph again "
        f"with export_onnx. Left alone:\n  {name}: GELU in its tanh form, which BiasGelu does not compute (at {name})"
    )
    report = fuse_graph("bias_gelu", keep="always", expected=1).run(changed, out, make_context())
    assert [refusal.node for refusal in report.refused] == [name]


def test_more_expected_than_there_is_to_find_is_an_error(exported: Artifact, out: Path, make_context: Context) -> None:
    with pytest.raises(StepError, match=r"embed_layer_norm matched 1 of 2 places(?s:.*)nothing: the graph has no other LayerNormalization"):
        fuse_graph("embed_layer_norm", expected=2, keep="always").run(exported, out, make_context())


def test_nothing_is_timed_when_a_later_fusion_does_not_match(exported: Artifact, out: Path, make_context: Context) -> None:
    price = FakePrice()
    step = FuseGraph.model_validate({"fusions": [{"name": "attention"}, {"name": "bias_gelu", "expected": 3}]})
    with pytest.raises(StepError, match="bias_gelu matched 2 of 3 places"):
        step.run(exported, out, make_context(values={CandidateLatencies: price}))
    assert price.asked == []


@pytest.mark.parametrize("inline_bytes_max", [onnx_file.INLINE_BYTES_MAX, 1000], ids=["inline weights", "external weights"])
def test_output_embeds_alike_and_the_source_is_untouched(
    exported: Artifact, out: Path, make_context: Context, monkeypatch: pytest.MonkeyPatch, inline_bytes_max: int
) -> None:
    monkeypatch.setattr(onnx_file, "INLINE_BYTES_MAX", inline_bytes_max)
    step = fuse_graph("attention", "bias_gelu", "skip_layer_norm", "embed_layer_norm")
    report = step.run(exported, out, make_context(values={CandidateLatencies: FakePrice()}))
    assert report.matched == {"attention": 2, "bias_gelu": 2, "skip_layer_norm": 4, "embed_layer_norm": 1}
    model = ir.load(out / Kind.ONNX.main_file)
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state", "sentence_embedding"]
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask"]
    assert (out / "onnx/model.onnx_data").is_file() == (inline_bytes_max == 1000)
    assert (out / "tokenizer.json").is_file()
    # The embedding has length 1; two layers in another order of summation. See test_fusions_parity.py.
    np.testing.assert_allclose(embed(out), embed(exported.path), atol=5e-6)
    assert open_artifact(exported.path, verify=True).sha256 == exported.sha256
    sealed = seal(out, out.parent / "sealed", Kind.ONNX, "random")
    assert open_artifact(sealed.path, verify=True).sha256 == sealed.sha256


def test_external_weights_of_a_source_are_written_once_for_all_candidates(
    exported: Artifact, tmp_path: Path, out: Path, make_context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "INLINE_BYTES_MAX", 1000)
    (tmp_path / "first").mkdir()
    fuse_graph("embed_layer_norm", keep="always").run(exported, tmp_path / "first", make_context())
    source = seal(tmp_path / "first", tmp_path / "source", Kind.ONNX, "random")
    assert (source.path / "onnx/model.onnx_data").is_file()
    files: list[dict[str, tuple[int, int]]] = []

    def price(folders: Sequence[Path]) -> list[Mapping[int, float]]:
        for folder in folders:
            # The engine opens what hard links lead to, and computes the same.
            np.testing.assert_allclose(embed(folder), embed(source.path), atol=5e-6)
        files.extend({path.name: (path.stat().st_ino, path.stat().st_size) for path in folder.glob("onnx/*_data")} for folder in folders)
        return [{16: 1.0} for _ in folders]

    fuse_graph("attention", "bias_gelu").run(source, out, make_context(values={CandidateLatencies: price}))
    unfused, attention, attention_again, bias_gelu = files
    assert attention == attention_again
    assert unfused["before_attention.onnx_data"] == attention["before_attention.onnx_data"] == bias_gelu["before_attention.onnx_data"]
    # Two layers of (32, 96) weights and (96,) biases; the biases are too small to be worth a place in the file.
    assert attention["attention.onnx_data"][1] == 2 * 32 * 96 * 4
    assert bias_gelu == attention
    assert {path.stat().st_nlink for path in source.path.rglob("*_data")} == {1}
    np.testing.assert_allclose(embed(out), embed(source.path), atol=5e-6)


def test_output_is_the_same_byte_for_byte_each_time(exported: Artifact, tmp_path: Path) -> None:
    step = fuse_graph("attention", "bias_gelu", "skip_layer_norm", "embed_layer_norm")
    hashes = []
    for name in ("first", "second"):
        for folder in (tmp_path / name, tmp_path / f"{name}_scratch"):
            folder.mkdir()
        context = StepContext(scratch=tmp_path / f"{name}_scratch", machine=read_machine(), values={CandidateLatencies: FakePrice()})
        step.run(exported, tmp_path / name, context)
        hashes.append(hashlib.sha256((tmp_path / name / Kind.ONNX.main_file).read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]


def test_attention_and_packed_qkv_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="attention and packed_qkv rewrite the same places; keep attention for onnxruntime"):
        fuse_graph("attention", "packed_qkv")


def test_fusion_is_named_once_at_most() -> None:
    with pytest.raises(ValidationError, match="bias_gelu: named more than once; name each fusion once"):
        fuse_graph("bias_gelu", "bias_gelu")


@pytest.mark.parametrize(
    "entry", [{"name": "fuse_all"}, {"name": "attention", "expected": -1}, {"name": "attention", "keep": "never"}, {"nam": "attention"}]
)
def test_entry_outside_the_schema_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FuseGraph.model_validate({"fusions": [entry]})


def test_broken_graph_is_an_error_that_names_the_file(exported: Artifact, tmp_path: Path, out: Path, make_context: Context) -> None:
    shutil.copytree(exported.path, tmp_path / "broken")
    path = tmp_path / "broken" / Kind.ONNX.main_file
    path.write_bytes(path.read_bytes()[:5000])
    broken = seal(tmp_path / "broken", tmp_path / "sealed", Kind.ONNX, "random")
    with pytest.raises(StepError, match=r"model\.onnx: cannot be read as ONNX.*make the artifact again"):
        fuse_graph("attention", keep="always").run(broken, out, make_context())


def test_full_disk_is_an_error_that_says_so(exported: Artifact, out: Path, make_context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", save)
    with pytest.raises(MachineError, match=r"model.onnx: cannot be written: No space left on device; free some space"):
        fuse_graph("attention", keep="always").run(exported, out, make_context())


def test_ratio_is_a_geometric_mean_over_lengths() -> None:
    assert time_ratio({8: 10.0, 128: 100.0}, {8: 5.0, 128: 200.0}) == pytest.approx(1.0)


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'openvino', 'nncf', 'scipy'}"
    code = f"import sys, optbench.steps.fuse_graph; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
