"""The code of every loader in the registry, as the card shows it and as the check runs it."""

import pytest

from optbench.artifact.manifest import Kind
from optbench.loaders import LOADERS
from optbench.loaders.base import ExportedModel, PythonLoader, Query

PYTHON_LOADERS = [loader for loader in LOADERS if isinstance(loader, PythonLoader)]
PROMPTED = Query("text", "'query: ' + text", has_prompt=True)


def model_of(kind: Kind, pooling: str = "mean", *, normalize: bool = True, precision: str | None = "f32") -> ExportedModel:
    return ExportedModel("tiny", "/models/it's", kind, "query: ", pooling, normalize, 32, 64, precision)


def code_of(loader: PythonLoader, model: ExportedModel) -> str:
    return "\n".join([*loader.load(model), *loader.embed(model, PROMPTED)])


def test_names_are_distinct_and_every_loader_runs_somewhere() -> None:
    assert len({loader.name for loader in LOADERS}) == len(LOADERS)
    for loader in PYTHON_LOADERS:
        assert set(loader.on_card) <= set(loader.reads)
        assert loader.environment is None or loader.packages == loader.environment.requirements


@pytest.mark.parametrize("loader", PYTHON_LOADERS, ids=lambda loader: str(loader.name))
def test_code_compiles_names_the_folder_and_sets_vectors(loader: PythonLoader) -> None:
    for kind in loader.reads:
        for model in (model_of(kind), model_of(kind, "cls", normalize=False, precision=None)):
            code = compile(code_of(loader, model), loader.name, "exec")
            assert any(isinstance(each, str) and each.startswith("/models/it's") for each in code.co_consts)
            assert "vectors" in code.co_names


@pytest.mark.parametrize("loader", [each for each in PYTHON_LOADERS if each.runtime == "openvino"], ids=lambda loader: str(loader.name))
def test_openvino_runs_in_the_precision_that_was_measured(loader: PythonLoader) -> None:
    assert "{'INFERENCE_PRECISION_HINT': 'f32'}" in code_of(loader, model_of(Kind.OPENVINO)).replace("'PERFORMANCE_HINT': 'LATENCY', ", "")
    assert "INFERENCE_PRECISION_HINT" not in code_of(loader, model_of(Kind.OPENVINO, precision=None))


def test_library_that_knows_prompts_takes_the_name_and_another_the_text() -> None:
    for loader in PYTHON_LOADERS:
        code = code_of(loader, model_of(loader.reads[0]))
        assert ('prompt_name="query"' in code) is (loader.distribution == "sentence-transformers")
        assert ("'query: ' + text" in code) is (loader.distribution != "sentence-transformers")
