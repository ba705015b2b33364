"""Making one item: found in the cache if every byte is as sealed, otherwise run in a process and sealed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from optbench.artifact.folder import Artifact, copy_companions, open_artifact
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError, StepError
from optbench.machine.cpu import Isa, read_machine
from optbench.machine.progress import silent
from optbench.recipe.load import load_recipe
from optbench.run import make, plan
from optbench.run.cache import UNFINISHED_DAYS_MAX, Cache
from optbench.run.inputs import Resolution
from optbench.run.listener import Silent
from optbench.run.make import Maker
from optbench.run.plan import Item, Options, Run, StepOutcome
from optbench.steps.base import ResumeFolder
from optbench.steps.distill import Distill
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.quantize_dynamic import QuantizeDynamic
from tests.run.runs import Listening, leave_unfinished

RECIPES = Path(__file__).parents[2] / "recipes"
KEY = "0" * 64


class FakeWorker:
    """Stands in for a step's process: writes a graph into the output folder, or fails as it is told to."""

    payloads: ClassVar[list[dict[str, Any]]] = []
    failure: ClassVar[Exception | None] = None

    def __init__(self, function: Any, payload: dict[str, Any]) -> None:
        self._payload = payload
        self.payloads.append(payload)

    def request(self, message: dict[str, Any], on_progress: Any) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        source, out = Path(self._payload["source"]), Path(self._payload["out"])
        copy_companions(source, out)
        graph = out / (Kind.ONNX.main_file if self._payload["step"]["step"] == "export_onnx" else Kind.CHECKPOINT.main_file)
        graph.parent.mkdir(exist_ok=True)
        graph.write_bytes(f"made {len(self.payloads)}".encode())
        return StepOutcome(seconds=1.5, peak_rss_bytes=2).model_dump(mode="json")

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def listening() -> Listening:
    return Listening()


@pytest.fixture
def maker(cache: Cache, listening: Listening, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setattr(make, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "payloads", [])
    return Maker(Run(load_recipe(RECIPES / "minilm-l6.yaml"), Options(cache=cache)), listening)


@pytest.fixture
def item(make_artifact: Callable[..., Artifact]) -> Item:
    return Item("0 export_onnx", ExportOnnx(), 0, make_artifact(Kind.CHECKPOINT), {}, KEY)


def test_step_is_run_once_and_found_again(maker: Maker, item: Item, cache: Cache, listening: Listening) -> None:
    made, found = maker(item), maker(item)
    assert (made.cached, found.cached) == (False, True)
    assert made.artifact == found.artifact == open_artifact(cache.artifact(KEY))
    assert made.outcome == found.outcome == StepOutcome(seconds=1.5, peak_rss_bytes=2)
    assert len(FakeWorker.payloads) == 1
    assert listening.cached == ["0 export_onnx"]
    assert list(cache.staging.iterdir()) == []


def test_forced_step_is_run_again(maker: Maker, item: Item) -> None:
    maker(item)
    again = maker(Item(item.label, item.step, item.index, item.source, {}, KEY, forced=True))
    assert not again.cached
    assert again.artifact.main_file.read_bytes() == b"made 2"


def test_artifact_with_a_changed_byte_is_made_again(maker: Maker, item: Item, caplog: pytest.LogCaptureFixture) -> None:
    first = maker(item)
    first.artifact.main_file.write_bytes(b"made X")
    again = maker(item)
    assert not again.cached
    assert "0 export_onnx: the cached artifact is broken and is made again" in caplog.text
    assert open_artifact(again.artifact.path).main_file.read_bytes() == b"made 2"


def test_report_that_is_cut_short_makes_the_step_again(maker: Maker, item: Item, cache: Cache) -> None:
    maker(item)
    cache.report(KEY).write_text("{")
    assert not maker(item).cached


def test_failed_step_is_named_and_leaves_nothing(maker: Maker, item: Item, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "failure", StepError("model.safetensors: no such weight"))
    with pytest.raises(StepError, match=r"^0 export_onnx: model.safetensors: no such weight$"):
        maker(item)
    assert not cache.has(KEY)
    assert list(cache.staging.iterdir()) == []


@pytest.fixture
def resumable(make_artifact: Callable[..., Artifact]) -> Item:
    """A step that declares a folder to resume from."""
    return Item("0 distill", Distill(), 0, make_artifact(Kind.CHECKPOINT), {ResumeFolder: Resolution(None, None)}, KEY)


@pytest.mark.parametrize(("failure", "stays"), [(MachineError("killed"), True), (StepError("0: refused"), False), (None, False)])
def test_resume_folder_outlives_a_killed_step_only(
    failure: Exception | None, stays: bool, maker: Maker, resumable: Item, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeWorker, "failure", failure)
    if failure is None:
        maker(resumable)
    else:
        with pytest.raises(type(failure)):
            maker(resumable)
    assert FakeWorker.payloads[0]["inputs"] == {"ResumeFolder": str(cache.unfinished / KEY)}
    assert (cache.unfinished / KEY).exists() == stays


def test_resume_folder_that_another_run_holds_is_refused(maker: Maker, resumable: Item, cache: Cache) -> None:
    with cache.resume_folder(KEY, "0 distill"), pytest.raises(MachineError, match="another run is making this artifact"):
        maker(resumable)
    assert (cache.unfinished / KEY).exists()


def test_making_stages_keeps_what_a_run_around_it_may_resume_from(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    # Probe bodies are made in the middle of a run, before its trainings.
    unfinished = leave_unfinished(cache, KEY, UNFINISHED_DAYS_MAX + 1)
    monkeypatch.setattr(make, "walk", lambda *_, **__: iter(()))
    make.make_stages(Run(load_recipe(RECIPES / "minilm-l6.yaml"), Options(cache=cache)), Silent())
    assert unfinished.exists()


def test_item_whose_source_was_not_made_is_an_error(maker: Maker) -> None:
    with pytest.raises(StepError, match="1 export_onnx: its source was not made"):
        maker(Item("1 export_onnx", ExportOnnx(), 1))


@pytest.mark.parametrize(("isa", "reduced"), [(None, False), ("avx2", True)])
def test_step_sees_the_machine_that_was_asked_for(
    isa: Isa | None,
    reduced: bool,
    make_artifact: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
    cache: Cache,
    tmp_path: Path,
) -> None:
    whole = read_machine().model_copy(update={"flags": ("avx2", "avx512_vnni", "avx512bw", "avx512vl", "sse4_1")})
    monkeypatch.setattr(plan, "read_machine", lambda: whole)
    run = Run(load_recipe(RECIPES / "minilm-l6.yaml"), Options(cache=cache, isa=isa))
    source = make_artifact(Kind.ONNX)

    class InProcess(FakeWorker):
        def request(self, message: dict[str, Any], on_progress: Any) -> dict[str, Any]:
            serving = make.serve_step(self._payload, silent)
            next(serving)
            answer: dict[str, Any] = serving.send({})
            return answer

    monkeypatch.setattr(make, "Worker", InProcess)
    stage = Maker(run, Listening())(Item("1 quantize_dynamic", QuantizeDynamic(), 1, source, {}, KEY))
    assert stage.outcome.report.facts["reduce_range"] is reduced


def test_cached_step_of_another_instruction_set_is_not_taken(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_machine().model_copy(update={"flags": ("avx2", "avx512_vnni", "avx512bw", "avx512vl", "sse4_1")})
    monkeypatch.setattr(plan, "read_machine", lambda: whole)
    recipe = load_recipe(RECIPES / "minilm-l6.yaml")
    keys = {Run(recipe, Options(cache=cache, isa=isa)).step_key(recipe.steps[0], KEY, {}) for isa in (None, "avx2")}
    assert len(keys) == 2
