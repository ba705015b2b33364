"""load and Encoder: text in, embeddings out, in order, for a service that has no torch."""

import json
import math
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench import encoder as encoder_module
from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import MANIFEST, Kind
from optbench.encoder import Encoder, load
from optbench.engines import Session
from optbench.engines.choice import ENGINE_FILE
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.errors import ArtifactError, EngineError

TEXTS = ["red shoe", "blue waterproof running boot", "", "laptop", "small wireless mouse cable", "oak desk " * 20]
# float32 keeps 24 bits; a batch of another shape adds the same terms in another order. The embeddings are unit vectors.
ABSOLUTE = 3e-6


@pytest.fixture
def encoder(make_artifact: Callable[..., Artifact]) -> Encoder:
    return load(make_artifact(Kind.ONNX, prompt="red ").path, threads=1)


def resealed(artifact: Artifact, folder: Path, **documents: Any) -> Path:
    """A copy of an artifact with some small files replaced, sealed."""
    shutil.copytree(artifact.path, folder / "staging")
    (folder / "staging" / MANIFEST).unlink()
    for name, document in documents.items():
        (folder / "staging" / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return seal(folder / "staging", folder / "sealed", artifact.kind, "random").path


def test_results_come_in_the_order_of_the_texts(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS, batch_size=2)
    assert rows.shape == (len(TEXTS), 32)
    assert rows.dtype == np.float32
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(row, encoder.encode(text), atol=ABSOLUTE)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_batch_size_moves_nothing(encoder: Encoder, batch_size: int) -> None:
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=batch_size), encoder.encode(TEXTS, batch_size=3), atol=ABSOLUTE)


def test_one_text_gives_a_vector_and_a_list_of_one_a_matrix(encoder: Encoder) -> None:
    assert encoder.encode("red shoe").shape == (32,)
    assert encoder.encode(["red shoe"]).shape == (1, 32)
    assert encoder.encode(("red shoe", "lamp")).shape == (2, 32)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    rows = encoder.encode([])
    assert rows.shape == (0, 32)
    assert rows.dtype == np.float32


def test_batches_hold_like_lengths(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    embed = encoder.embed

    def spy(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append((input_ids.size, int(attention_mask.sum())))
        return embed(input_ids, attention_mask)

    monkeypatch.setattr(encoder, "embed", spy)
    encoder.encode(["red " * length for length in (1, 20, 2, 19, 3, 18)], batch_size=3)
    # 18 to 20 words with two special tokens, then 1 to 3.
    assert seen == [(3 * 22, 20 + 21 + 22), (3 * 5, 3 + 4 + 5)]


def test_prompt_is_put_in_front(encoder: Encoder) -> None:
    np.testing.assert_allclose(encoder.encode("shoe", prompt="query"), encoder.encode("red shoe"), atol=ABSOLUTE)
    np.testing.assert_array_equal(encoder.encode("shoe", prompt="document"), encoder.encode("shoe"))


@pytest.mark.parametrize("texts", ["shoe", ["shoe"], []])
def test_unknown_prompt_is_refused_with_those_that_there_are(encoder: Encoder, texts: str | list[str]) -> None:
    with pytest.raises(ArtifactError, match="has no prompt 'passage'; it has query, document"):
        encoder.encode(texts, prompt="passage")


def test_default_prompt_is_put_in_front_where_none_is_named(
    make_artifact: Callable[..., Artifact], encoder: Encoder, tmp_path: Path
) -> None:
    settings = {"prompts": {"query": "red "}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    with load(resealed(make_artifact(Kind.ONNX, prompt="red "), tmp_path, config_sentence_transformers=settings), threads=1) as other:
        assert (other.default_prompt, other.similarity_fn_name) == ("query", "dot")
        np.testing.assert_array_equal(other.encode("boot"), encoder.encode("boot", prompt="query"))
        np.testing.assert_array_equal(other.encode("boot", prompt=""), encoder.encode("boot"))


@pytest.mark.parametrize("text", ["", " "])
def test_text_without_a_token_gives_a_zero_vector_alone_and_in_a_batch(
    text: str, make_artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = make_artifact(Kind.ONNX)
    document = json.loads((artifact.path / "tokenizer.json").read_text()) | {"post_processor": None}
    with load(resealed(artifact, tmp_path, tokenizer=document), threads=1) as encoder:
        assert not encoder.encode(text).any()
        rows = encoder.encode([text, "red shoe", text, "boot"])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [0, 1, 0, 1], atol=ABSOLUTE)
        np.testing.assert_allclose(rows[1], encoder.encode("red shoe"), atol=ABSOLUTE)
        assert encoder.encode([text, text]).shape == (2, 32)


def test_prompts_keep_the_names_of_the_model(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    document = {"prompts": {"query": "red ", "passage": "blue ", "topic": "oak "}}
    folder = resealed(make_artifact(Kind.ONNX), tmp_path, config_sentence_transformers=document)
    with load(folder, threads=1) as encoder:
        assert dict(encoder.prompts) == {"query": "red ", "document": "blue ", "passage": "blue ", "topic": "oak "}
        np.testing.assert_allclose(encoder.encode("desk", prompt="topic"), encoder.encode("oak desk"), atol=ABSOLUTE)


@pytest.mark.parametrize("document", [{"prompts": {"query": 3}}, {"prompts": ["red"]}])
def test_broken_prompts_are_an_artifact_error(make_artifact: Callable[..., Artifact], tmp_path: Path, document: Any) -> None:
    with pytest.raises(ArtifactError, match=r"config_sentence_transformers\.json: prompts"):
        load(resealed(make_artifact(Kind.ONNX), tmp_path, config_sentence_transformers=document))


@pytest.mark.parametrize(
    ("texts", "message"), [(None, "texts: .* found NoneType"), ({"a": "red"}, "found dict"), (["red", 3], r"texts\[1\]")]
)
def test_what_is_no_text_is_refused_by_name(encoder: Encoder, texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encoder.encode(texts)


def test_lone_surrogate_is_named_in_one_text_and_in_several(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"^text has a lone surrogate, U\+DCFF"):
        encoder.encode("red \udcff")
    with pytest.raises(ValueError, match=r"texts\[2\] has a lone surrogate, U\+DCFF, at character 4"):
        encoder.encode(["red", "blue", "red \udcff"], prompt="query")


def test_every_iterable_of_texts_gives_the_same_rows(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    for texts in (tuple(TEXTS), iter(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), dict.fromkeys(TEXTS).keys()):
        np.testing.assert_array_equal(encoder.encode(texts), expected)
    assert encoder.encode(iter(())).shape == (0, 32)


def test_batch_size_below_one_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="batch_size 0: expected at least 1"):
        encoder.encode(["red"], batch_size=0)


def test_long_text_is_cut_at_the_longest_input(encoder: Encoder) -> None:
    input_ids, attention_mask = encoder.tokenize(["oak " * 200, "red"])
    assert encoder.max_tokens == 64
    assert input_ids.shape == attention_mask.shape == (2, 64)
    assert attention_mask.sum(axis=1).tolist() == [64, 3]


def test_dimension_cuts_and_normalizes_again(make_artifact: Callable[..., Artifact], encoder: Encoder) -> None:
    whole = encoder.encode(TEXTS)
    with load(encoder.artifact.path, threads=1, dimension=8) as short:
        assert short.dimension == 8
        expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
        np.testing.assert_allclose(short.encode(TEXTS), expected, atol=ABSOLUTE * 10)  # divided by norms of some 0.3
        assert short.encode([]).shape == (0, 8)
    plain = make_artifact(Kind.ONNX, normalize=False).path
    with load(plain, threads=1) as long, load(plain, threads=1, dimension=8) as short:
        np.testing.assert_array_equal(short.encode(TEXTS), long.encode(TEXTS)[:, :8])


@pytest.mark.parametrize("dimension", [0, 33])
def test_dimension_that_the_model_does_not_have_is_refused(make_artifact: Callable[..., Artifact], dimension: int) -> None:
    with pytest.raises(ArtifactError, match=f"its embeddings have 32 components, not {dimension}"):
        load(make_artifact(Kind.ONNX).path, dimension=dimension)


def test_engine_json_chooses_the_engine_and_options_go_over_it(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    written = OpenVino(static_lengths=(8, 16), threads=1)
    folder = resealed(make_artifact(Kind.ONNX), tmp_path, engine=written.model_dump(mode="json"))
    with load(folder) as encoder:
        assert encoder.engine == written
    with load(folder, static_lengths=(4,)) as encoder:
        assert encoder.engine == OpenVino(static_lengths=(4,), threads=1)
    with load(folder, "onnxruntime", threads=1) as encoder:
        assert encoder.engine == OnnxRuntime(threads=1)
    with load(folder, OnnxRuntime(spinning=False), threads=1) as encoder:
        assert encoder.engine == OnnxRuntime(spinning=False, threads=1)


@pytest.mark.parametrize(
    ("document", "words"),
    [({"engine": "tensorflow"}, "does not match any"), ({"engine": "openvino", "thread": 1}, "openvino has no option thread"), ([1], "")],
)
def test_broken_engine_json_is_named(make_artifact: Callable[..., Artifact], tmp_path: Path, document: Any, words: str) -> None:
    folder = resealed(make_artifact(Kind.ONNX), tmp_path, engine=document)
    with pytest.raises(EngineError, match=f"{ENGINE_FILE}: .*{words}"):
        load(folder)


def test_unknown_option_is_refused_with_those_that_the_engine_has(make_artifact: Callable[..., Artifact]) -> None:
    with pytest.raises(EngineError, match="onnxruntime has no option thread; it has threads, disabled_optimizers"):
        load(make_artifact(Kind.ONNX).path, thread=1)


def test_truncated_file_is_found_without_hashing_and_a_changed_one_with_it(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    folder = resealed(make_artifact(Kind.ONNX), tmp_path)
    graph = folder / Kind.ONNX.main_file
    content = graph.read_bytes()
    graph.write_bytes(content[:-4] + bytes(byte ^ 1 for byte in content[-4:]))
    with pytest.raises(ArtifactError, match=r"onnx/model\.onnx has changed since it was sealed"):
        load(folder, verify=True)
    graph.write_bytes(content[:-4])
    with pytest.raises(ArtifactError, match=rf"onnx/model\.onnx has {len(content) - 4} bytes"):
        load(folder)


@pytest.mark.parametrize("address", ["hf://org/model", "s3://bucket/model", "oci://host/name:tag"])
def test_address_is_refused_and_pull_named(address: str) -> None:
    for path in (address, Path(address)):
        with pytest.raises(ArtifactError, match=r"load opens a folder; run `optbench pull .* FOLDER` first"):
            load(path)


def test_option_of_the_caller_is_blamed_on_the_caller(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    folder = resealed(make_artifact(Kind.ONNX), tmp_path, engine={"engine": "openvino", "threads": 1})
    with pytest.raises(EngineError, match=r"^engine options: openvino has no option thread; it has threads"):
        load(folder, thread=1)
    with pytest.raises(EngineError, match=r"^engine options: threads is 0: Input should be greater than or equal to 1"):
        load(folder, threads=0)
    with pytest.raises(EngineError, match=r"^engine tensorflow: .*does not match any"):
        load(folder, "tensorflow", threads=1)


def test_pickled_encoder_opens_the_same_folder(
    make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resealed(make_artifact(Kind.ONNX), tmp_path)
    monkeypatch.chdir(folder.parent)
    with load(folder.name, threads=1, dimension=8) as encoder:
        pickled, expected = pickle.dumps(encoder), encoder.encode(TEXTS)
    assert len(pickled) < 2_000
    monkeypatch.chdir("/")
    with pickle.loads(pickled) as reopened:  # noqa: S301  # our own
        assert (reopened.engine, reopened.dimension) == (OnnxRuntime(threads=1), 8)
        np.testing.assert_array_equal(reopened.encode(TEXTS), expected)
    shutil.rmtree(folder)
    (tmp_path / "other").mkdir()
    resealed(make_artifact(Kind.ONNX, prompt="red "), tmp_path / "other").rename(folder)
    with pytest.raises(ArtifactError, match="another artifact than when this encoder was pickled"):
        pickle.loads(pickled)  # noqa: S301  # our own


def test_similarity_is_the_models_own(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS)
    assert encoder.similarity_fn_name == "cosine"
    np.testing.assert_allclose(encoder.similarity(rows[0], rows), (rows @ rows[0])[np.newaxis], atol=ABSOLUTE)


def test_progress_is_reported_to_a_function_or_drawn(encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, float | None]] = []
    encoder.encode(TEXTS, batch_size=2, progress=lambda message, share: told.append((message, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares, key=lambda share: share or 0)
    assert (len(told), told[-1]) == (4, ("encoding", 1.0))
    assert capsys.readouterr() == ("", "")
    encoder.encode(TEXTS, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{len(TEXTS)}/{len(TEXTS)}" in shown.err


def test_many_texts_open_streams_and_few_do_not(make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "STREAMS_AFTER", 3 * len(TEXTS))
    artifact = make_artifact(Kind.ONNX).path
    with load(artifact, threads=2) as encoder, load(artifact, threads=2, streams=False) as single:
        for _ in range(2):
            expected = encoder.encode(TEXTS, batch_size=2)
            encoder.encode(["red shoe"] * 60, batch_size=64)  # fits one run
            assert encoder._streams is None
        assert encoder._streams is None
        for batch_size in (2, 3):
            np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=batch_size), expected, atol=ABSOLUTE)
            assert encoder._streams is not None
        # One by one is how a service gets its queries: never in streams.
        streams = encoder._streams
        monkeypatch.setattr(encoder, "_streams", None)
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=1), expected, atol=ABSOLUTE)
        assert encoder._streams is None
        monkeypatch.setattr(encoder, "_streams", streams)
        single.encode(TEXTS * 9, batch_size=2)
        assert single._streams is None
    with pytest.raises(EngineError, match="the session is closed"):
        encoder.encode(TEXTS, batch_size=2)


def test_warm_up_plans_each_length_and_opens_streams_on_request(
    make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(make_artifact(Kind.ONNX).path, threads=2) as encoder:
        lengths: list[int] = []
        embed = encoder.embed

        def spy(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
            lengths.append(input_ids.shape[1])
            return embed(input_ids, attention_mask)

        monkeypatch.setattr(encoder, "embed", spy)
        encoder.warm_up((4, 8, 10_000))
        assert lengths == [4, 4, 8, 8, encoder.max_tokens, encoder.max_tokens]
        assert encoder._streams is None
        encoder.warm_up(streams=True)
        assert encoder._streams is not None


def test_closed_encoder_says_so(encoder: Encoder) -> None:
    with encoder:
        encoder.encode("red")
    encoder.close()
    with pytest.raises(EngineError, match="the session is closed"):
        encoder.encode("red")


def test_threads_of_a_service_get_their_own_results(make_artifact: Callable[..., Artifact]) -> None:
    with load(make_artifact(Kind.OPENVINO).path, threads=1, static_lengths=(8,)) as encoder:
        expected = encoder.encode(TEXTS)
        wrong: list[str] = []

        def serve(offset: int) -> None:
            for turn in range(40):
                index = (turn + offset) % len(TEXTS)
                if not np.allclose(encoder.encode(TEXTS[index]), expected[index], atol=ABSOLUTE):
                    wrong.append(TEXTS[index])

        threads = [threading.Thread(target=serve, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.parametrize("kind", [Kind.ONNX, Kind.OPENVINO])
def test_service_loads_no_torch(make_artifact: Callable[..., Artifact], kind: Kind) -> None:
    program = (
        "import sys, optbench\n"
        "with optbench.load(sys.argv[1], threads=1) as encoder:\n"
        "    print(encoder.encode(['red shoe', 'lamp'], prompt='query').shape)\n"
        "heavy = ('torch', 'transformers', 'onnx', 'onnxscript', 'nncf', 'scipy', 'sentence_transformers', 'ruamel', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, make_artifact(kind).path], capture_output=True, text=True, check=False
    )
    assert (printed.stdout, printed.stderr) == ("(2, 32)\n[]\n", "")


def test_real_model_ranks_real_texts(minilm_checkpoint: Artifact) -> None:
    with load(minilm_checkpoint.path, threads=1) as encoder:
        query = encoder.encode("waterproof shoes for running")
        documents = encoder.encode(["oak writing desk", "trail running shoe, gore-tex", "usb-c charger 65 W"])
    assert (documents @ query).argmax() == 1
    assert math.isclose(float(np.linalg.norm(query)), 1, abs_tol=1e-6)


class CountingSession(Session):
    """Embeds nothing, and counts."""

    calls = 0

    def embed(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        self.calls += 1
        return np.zeros((len(input_ids), 32), dtype=np.float32)

    def close(self) -> None:
        pass


def test_each_batch_is_one_call_of_the_session(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    session = CountingSession()
    monkeypatch.setattr(encoder, "_session", session)
    encoder.encode(["red"] * 10, batch_size=4)
    assert session.calls == 3
