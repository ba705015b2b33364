"""trim_vocabulary: the same vectors for the texts it saw, and an encoding for every text there is."""

import json
import lzma
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from optbench.artifact.folder import Artifact, hash_file, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.base.entry import Base
from optbench.base.obtain import obtain_base
from optbench.errors import StepError
from optbench.machine.cpu import read_machine
from optbench.model.body import Body
from optbench.model.checkpoint import Description, Prompts, read_body, write_layout
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps import trim_vocabulary
from optbench.steps.base import CalibrationTexts, RecipeFiles, StepContext, StepReport
from optbench.steps.trim_vocabulary import TrimVocabulary

DATA = Path(os.environ.get("OPTBENCH_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
ENGLISH = ["waterproof running shoes for women", "usb-c charger, 65 w", "the lamp is red and the table is oak"]
GERMAN = ["schuhe für damen", "der tisch und die lampe sind schwarz"]
BODIES = {
    "WordPiece": {"architecture": "BertModel", "type_vocabulary": 2, "pad_id": 0},
    "Unigram": {"architecture": "XLMRobertaModel", "type_vocabulary": 1, "pad_id": 1},
}


@pytest.fixture(scope="module")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """A tiny model with random weights and a synthetic tokenizer of the kind; made once."""
    made: dict[str, Artifact] = {}

    def make(kind: str) -> Artifact:
        if kind not in made:
            body = {"layers": 1, "hidden": 16, "heads": 2, "feed_forward": 32, "vocabulary": 3000, "positions": 66, **BODIES[kind]}
            base = Base.model_validate(
                {
                    "source": "random",
                    "license": "MIT",
                    "body": body,
                    "pooling": "mean",
                    "normalize": True,
                    "prompts": {"query": "query: "},
                    "max_tokens": 64,
                }
            )
            made[kind] = obtain_base(base, cache=tmp_path_factory.mktemp("base"))
        return made[kind]

    return make


def trim(
    source: Artifact, folder: Path, texts: list[str], context: StepContext | None = None, **options: object
) -> tuple[Path, StepReport]:
    """The step on `texts`, in a corpus file beside the recipe."""
    (folder / "out").mkdir(parents=True)
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    step = TrimVocabulary.model_validate({"corpus": ["texts.txt"], **options})
    context = context or StepContext(scratch=folder, machine=read_machine(), values={RecipeFiles: folder})
    return folder / "out", step.run(source, folder / "out", context)


@pytest.fixture(scope="module", params=list(BODIES))
def trimmed(
    request: pytest.FixtureRequest, make_base: Callable[[str], Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Path, StepReport]:
    """A base, the same trimmed to English and German texts, and what the step said."""
    source = make_base(request.param)
    out, report = trim(source, tmp_path_factory.mktemp("trim"), [*ENGLISH, *GERMAN])
    return source, out, report


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the two processes in which loading is measured."""
    monkeypatch.setattr(trim_vocabulary, "_measure_loading", lambda folder, when: {})


def embed(folder: Path, texts: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    import torch

    from optbench.model.torch_model import build_module

    ids, mask = encode_batch(load_tokenizer(folder), texts)
    with torch.inference_mode():
        vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = build_module(folder)(torch.tensor(ids), torch.tensor(mask))[1].numpy()
    return vectors


def test_texts_of_the_corpus_have_bit_equal_vectors_with_and_without_prompt(trimmed: tuple[Artifact, Path, StepReport]) -> None:
    source, out, _ = trimmed
    texts = [prompt + text for text in [*ENGLISH, *GERMAN] for prompt in ("", "query: ")]
    np.testing.assert_array_equal(embed(out, texts), embed(source.path, texts))
    open_artifact(source.path)  # the source is as it was sealed


def test_table_tokenizer_and_config_agree_on_fewer_pieces(trimmed: tuple[Artifact, Path, StepReport]) -> None:
    source, out, report = trimmed
    kept = report.facts["pieces_after"]
    assert isinstance(kept, int)
    assert kept < 0.7 * read_body(source.path).vocabulary
    assert read_body(out).vocabulary == kept == load_tokenizer(out).get_vocab_size()
    assert report.facts["table_bytes_after"] == kept * 16 * 4
    assert read_body(out).pad_id == read_body(source.path).pad_id
    config, tokenizer = json.loads((out / "config.json").read_text()), load_tokenizer(out)
    names = json.loads((out / "special_tokens_map.json").read_text())
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    assert ids
    assert {key: tokenizer.token_to_id(names[key.removesuffix("_id")]) for key in ids} == ids
    begin, end = tokenizer.token_to_id(names["cls_token"]), tokenizer.token_to_id(names["sep_token"])
    assert tokenizer.encode("").ids == [begin, end]


def test_report_says_what_loading_takes_before_and_after(trimmed: tuple[Artifact, Path, StepReport]) -> None:
    facts = trimmed[2].facts
    for name in ("load_ms", "rss_bytes", "table_bytes", "tokenizer_bytes"):
        assert float(str(facts[f"{name}_before"])) > 0
        assert float(str(facts[f"{name}_after"])) > 0
    assert facts["corpora"] == {"texts.txt": facts["corpora"]["texts.txt"]}  # type: ignore[index,call-overload]
    assert facts["corpora"]["texts.txt"]["texts"] == 5  # type: ignore[index,call-overload]


cached_tokenizer = cache(load_tokenizer)


@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_every_string_still_encodes(trimmed: tuple[Artifact, Path, StepReport], text: str) -> None:
    source, out, report = trimmed
    before, after = cached_tokenizer(source.path), cached_tokenizer(out)
    ids = after.encode(text).ids
    assert all(0 <= index < int(str(report.facts["pieces_after"])) for index in ids)
    unknown = json.loads((out / "special_tokens_map.json").read_text())["unk_token"]
    if unknown not in before.encode(text).tokens:
        assert unknown not in after.encode(text).tokens


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """XLM-R's real tokenizer over a narrow table whose rows say their own id."""
    packed = DATA / "xlmr-tokenizer" / "tokenizer.json.xz"
    if not packed.is_file():
        pytest.skip(f"{packed}: not there")
    staging = tmp_path_factory.mktemp("xlmr") / "staging"
    staging.mkdir()
    (staging / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
    body = Body(architecture="XLMRobertaModel", layers=1, hidden=2, heads=1, feed_forward=2, vocabulary=250_002, positions=514, pad_id=1)
    config = {"model_type": "xlm-roberta", "num_hidden_layers": 1, "hidden_size": 2, "num_attention_heads": 1, "intermediate_size": 2}
    config |= {"vocab_size": 250_002, "max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    (staging / "config.json").write_text(json.dumps(config))
    write_layout(staging, Description(body=body, pooling="mean", normalize=True, prompts=Prompts(query="query: "), max_tokens=512))
    rows = np.stack([np.arange(250_002), np.arange(250_002)], axis=1).astype(np.float32)
    save_file({"embeddings.word_embeddings.weight": rows}, staging / "model.safetensors", metadata={"format": "pt"})
    return seal(staging, staging.parent / "sealed", Kind.CHECKPOINT, "random")


def test_real_xlmr_vocabulary_keeps_three_languages_and_every_character(xlmr: Artifact, tmp_path: Path) -> None:
    texts = ["The quick brown fox jumps over the lazy dog.", "Die Straße ist naß, schöne Grüße!", "Où est la bibliothèque ? Ça marche."]
    out, report = trim(xlmr, tmp_path, texts)
    before, after = load_tokenizer(xlmr.path), load_tokenizer(out)
    table = np.fromfile(out / "model.safetensors", dtype=np.float32)[-2 * after.get_vocab_size() :].reshape(-1, 2)
    for text in texts:
        assert after.encode(text).tokens == before.encode(text).tokens
        # The row of a new id is the row of the old one.
        assert table[after.encode(text).ids, 0].astype(int).tolist() == before.encode(text).ids
    for text in ("搜索引擎 très vite", "поиск 検索 검색", "🦊 x\u0301 \x00", ""):
        assert ("<unk>" in after.encode(text).tokens) == ("<unk>" in before.encode(text).tokens)
    assert after.token_to_id("<mask>") == after.get_vocab_size() - 1
    facts = report.facts
    assert facts["kept_whatever_is_used"] == {"special": 5, "characters": 13_828, "only_piece_of_a_character": 1}
    assert int(str(facts["rss_bytes_after"])) < 0.5 * int(str(facts["rss_bytes_before"]))
    assert int(str(facts["table_bytes_after"])) < 0.06 * int(str(facts["table_bytes_before"]))


@pytest.mark.usefixtures("unmeasured")
def test_without_a_corpus_the_calibration_texts_say_what_stays(make_base: Callable[[str], Artifact], tmp_path: Path) -> None:
    source = make_base("Unigram")
    context = StepContext(scratch=tmp_path, machine=read_machine(), values={CalibrationTexts: ENGLISH})
    TrimVocabulary().run(source, tmp_path, context)
    np.testing.assert_array_equal(embed(tmp_path, ENGLISH), embed(source.path, ENGLISH))


@pytest.mark.usefixtures("unmeasured")
def test_texts_beyond_texts_max_are_left_out_and_that_is_a_warning(make_base: Callable[[str], Artifact], tmp_path: Path) -> None:
    _, report = trim(make_base("WordPiece"), tmp_path, [*ENGLISH, *GERMAN], texts_max=3)
    assert report.warnings == ("texts.txt: only its first 3 texts were read; raise texts_max to read more",)
    _, report = trim(make_base("WordPiece"), tmp_path / "whole", [*ENGLISH, *GERMAN], texts_max=5)
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["", "  "], {}, "texts.txt: holds no text, so no piece would be kept"),
        (["搜索引擎 検索", "검색 엔진"], {}, r"texts.txt: \d+\.\d% of its tokens are unknown to .*tokenizer.json, unknown_max is 2.0%"),
        (GERMAN, {"coverage_min": 0.9}, r"texts.txt: hold the pieces of \d\d\.\d% of the tokens in the recipe's calibration texts"),
    ],
)
def test_corpus_that_says_nothing_of_the_models_texts_is_refused(
    texts: list[str], options: dict[str, object], message: str, make_base: Callable[[str], Artifact], tmp_path: Path
) -> None:
    context = StepContext(scratch=tmp_path, machine=read_machine(), values={RecipeFiles: tmp_path, CalibrationTexts: ENGLISH})
    with pytest.raises(StepError, match=message):
        trim(make_base("WordPiece"), tmp_path, texts, context, **options)


def test_tokenizer_of_another_kind_is_refused_with_its_name(make_checkpoint: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(StepError, match="a WordLevel tokenizer; trim_vocabulary takes WordPiece and Unigram"):
        trim(make_checkpoint(), tmp_path, ENGLISH)


def test_bpe_is_refused(make_base: Callable[[str], Artifact], tmp_path: Path) -> None:
    source = make_base("WordPiece")
    staging = tmp_path / "staging"
    staging.mkdir()
    for path in source.path.iterdir():
        if path.is_file() and path.name not in ("manifest.json", "tokenizer.json"):
            (staging / path.name).write_bytes(path.read_bytes())
    (staging / "1_Pooling").mkdir()
    (staging / "1_Pooling" / "config.json").write_bytes((source.path / "1_Pooling" / "config.json").read_bytes())
    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(staging / "tokenizer.json"))
    with pytest.raises(StepError, match=r"a BPE tokenizer; .*remove the step"):
        trim(seal(staging, tmp_path / "sealed", Kind.CHECKPOINT, "random"), tmp_path / "trim", ENGLISH)


@pytest.mark.usefixtures("unmeasured")
def test_step_gives_the_same_bytes_again(make_base: Callable[[str], Artifact], tmp_path: Path) -> None:
    outs = [trim(make_base("Unigram"), tmp_path / name, ENGLISH)[0] for name in ("first", "second")]
    hashes = [{path.name: hash_file(path) for path in out.rglob("*") if path.is_file()} for out in outs]
    assert hashes[0] == hashes[1]
