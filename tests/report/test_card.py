"""The card: front matter that huggingface_hub understands, code that runs, limits that are said, text that stays text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load

import optbench
from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report.card import render_card
from optbench.report.loaders import snippets_of

from .conftest import HOSTILE


def card_of(record: Record) -> str:
    return render_card(record, judge(record))


def with_base(record: Record, **changes: Any) -> Record:
    base = record.recipe.base.model_copy(update=changes)
    return record.model_copy(update={"recipe": record.recipe.model_copy(update={"base": base})})


def of_kind(record: Record, kind: Kind, **engine: Any) -> Record:
    final = record.final.model_copy(update={"kind": kind, "engine": {"engine": kind, **engine}})
    return record.model_copy(update={"points": (*record.points[:-1], final)})


def test_front_matter_is_what_the_hub_wants(make_record: Callable[..., Record], tmp_path: Path) -> None:
    record = make_record(accuracy=({"q1": 0.5, "q2": 0.7}, {"q1": 0.5, "q2": 0.65}))
    path = tmp_path / "README.md"
    path.write_text(card_of(record))
    metadata = metadata_load(path)
    assert metadata is not None
    assert metadata["base_model"] == "thenlper/gte-large"
    assert metadata["base_model_relation"] == "quantized"
    assert (metadata["license"], metadata["language"]) == ("mit", ["en"])
    assert (metadata["pipeline_tag"], metadata["library_name"]) == ("sentence-similarity", "sentence-transformers")
    (result,) = ModelCard.load(path).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("judged", "ndcg_at_10", 0.575)
    assert result.task_type == "retrieval"


def test_random_weights_are_said_first_and_have_no_metrics(make_record: Callable[..., Record]) -> None:
    text = card_of(make_record(weights="random", base="random"))
    body = text.split("---\n", 2)[2]
    assert body.strip().splitlines()[2].startswith("> **Random weights.**")
    assert "model-index" not in text
    assert "- random-weights" in text
    assert "Accuracy is unknown" in text
    assert "--weights random" in text


@pytest.mark.parametrize(
    ("license_id", "wanted"),
    [("Apache-2.0", {"license": "apache-2.0"}), ("Elastic-2.0", {"license": "other", "license_name": "elastic-2.0"})],
)
def test_license_is_named_as_the_hub_names_it_and_carried_over(
    license_id: str, wanted: dict[str, str], make_record: Callable[..., Record]
) -> None:
    card = ModelCard(card_of(with_base(make_record(), license=license_id)))
    assert wanted.items() <= card.data.to_dict().items()
    assert f"**{license_id}**, also applies to this artifact" in card.text


def test_own_model_is_not_passed_off_as_the_recipes_base(make_record: Callable[..., Record]) -> None:
    data = ModelCard(card_of(make_record(base="path:/my/model"))).data.to_dict()
    assert "base_model" not in data
    fine_tuned = ModelCard(card_of(make_record(base=f"hub:me/fine-tuned@{'a' * 40}"))).data.to_dict()
    assert fine_tuned["base_model"] == "me/fine-tuned"


def test_text_of_a_stranger_stays_text(make_steps_record: Callable[..., Record]) -> None:
    hostile = "".join(HOSTILE) + "\n---\n# Injected\n[click](https://example.org) `code`"
    card = ModelCard(card_of(make_steps_record(hostile)))
    assert "# Injected" not in card.text.splitlines()
    # Markdown shows what is in code as it is.
    prose = re.sub(r"```.*?```|(?<!\\)`[^`]*`", "", card.text, flags=re.S)
    for tag in ("<script", "<img", "</script", "<!--", " [click]("):
        assert tag not in prose
    # The front matter holds the name whole: nothing of it became a key.
    assert card.data.model_name.startswith("Model ")
    assert "# Injected" in card.data.model_name


def test_limits_name_the_instruction_set_and_what_was_not_measured(make_record: Callable[..., Record]) -> None:
    text = card_of(make_record(isa="avx2_vnni"))
    assert "with avx2_vnni" in text
    assert "8, 16, 32, 64, 128 tokens" in text
    assert "optbench stability FOLDER" in text


@pytest.mark.parametrize("kind", [Kind.OPENVINO, Kind.ONNX])
def test_code_for_each_loader_compiles_and_plain_engines_give_our_vectors(
    kind: Kind, make_artifact: Callable[..., Artifact], make_record: Callable[..., Record]
) -> None:
    artifact = make_artifact(kind)
    record = with_base(of_kind(make_record(), kind, inference_precision="f32"), max_tokens=64)
    own = optbench.load(artifact.path).encode(["running shoes"], prompt="query")
    seen = []
    for loader in snippets_of(record, str(artifact.path)):
        code = compile(loader.code, loader.name, "exec")
        if loader.name in ("optbench", "OpenVINO", "ONNX Runtime"):
            names: dict[str, Any] = {}
            exec(code, names)  # noqa: S102  # what the card tells its reader to run
            # Two engines, or one twice, in fp32: sums in another order.
            np.testing.assert_allclose(np.asarray(names["vectors"]), own, atol=1e-5)
            seen.append(loader.name)
    assert seen == (["optbench", "OpenVINO"] if kind is Kind.OPENVINO else ["optbench", "ONNX Runtime", "OpenVINO"])


def test_prompt_of_the_base_is_in_the_code(make_record: Callable[..., Record]) -> None:
    record = make_record()
    prompts = record.recipe.base.prompts.model_copy(update={"query": "query: "})
    codes = {loader.name: loader.code for loader in snippets_of(with_base(of_kind(record, Kind.ONNX), prompts=prompts), "folder")}
    assert "'query: running shoes'" in codes["ONNX Runtime"]
    assert "'query: running shoes'" in codes["fastembed"]
    assert 'prompt_name="query"' in codes["sentence-transformers (onnx)"]


NOTE = """Trained on our search logs.

### Where it fails

Part numbers: `AB-12` and `AB-21` are *close*.

```python
# a comment, not a heading
```
"""


def with_card(record: Record, text: str) -> Record:
    return record.model_copy(update={"recipe": type(record.recipe).model_validate({**record.recipe.model_dump(), "card": text})})


def test_section_of_the_recipes_author_is_in_the_card_word_for_word(make_record: Callable[..., Record]) -> None:
    plain, card = card_of(make_record()), card_of(with_card(make_record(), NOTE))
    assert f"## About this model\n\n{NOTE.strip()}\n\n## Verdict" in card
    assert "About this model" not in plain
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## About this model",
        *(line for line in plain.splitlines() if line.startswith("## ")),
    ]


def test_control_characters_of_a_section_do_not_reach_the_card(make_record: Callable[..., Record]) -> None:
    assert "\x1b" not in card_of(with_card(make_record(), "red: \x1b[31m"))
