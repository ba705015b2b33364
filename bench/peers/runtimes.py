"""ONNX Runtime, optimum-intel, CTranslate2 and fastembed."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Embed, Peer, Source, pool
from bench.peers.calibration import COLUMN, SPLIT, write_calibration_set
from optbench.model.checkpoint import read_body, read_max_tokens

__all__ = ["CTranslate2", "FastEmbed", "OnnxRuntimeDynamic", "OptimumIntel"]

ONNX = "model.onnx"


@dataclass(frozen=True)
class OnnxRuntimeDynamic(Peer):
    """`onnxruntime.quantization.quantize_dynamic` with its defaults, on the plain export."""

    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def build(self, source: Source, out: Path) -> None:
        """Quantize."""
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(source.export / "onnx" / ONNX, out / ONNX)

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Open a session with its defaults, except for the threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(built / ONNX), options, providers=["CPUExecutionProvider"])

        def embed(tokens: Any) -> Any:
            return session.run(["sentence_embedding"], dict(zip(("input_ids", "attention_mask"), tokens, strict=True)))[0]

        return embed


@dataclass(frozen=True)
class OptimumIntel(Peer):
    """optimum-intel: its own export, `OVQuantizer` with the defaults of `OVQuantizationConfig`, `OVModelForFeatureExtraction`."""

    libraries: ClassVar[tuple[str, ...]] = ("optimum-intel", "openvino", "nncf", "transformers", "torch")

    def build(self, source: Source, out: Path) -> None:
        """Export, calibrate on our texts without padding, quantize."""
        from optimum.intel import OVConfig, OVModelForFeatureExtraction, OVQuantizationConfig, OVQuantizer
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source.checkpoint, local_files_only=True)
        model = OVModelForFeatureExtraction.from_pretrained(source.checkpoint, export=True, compile=False, local_files_only=True)
        quantizer = OVQuantizer.from_pretrained(model)
        limit = read_max_tokens(source.checkpoint)
        calibration = quantizer.get_calibration_dataset(
            str(write_calibration_set(out / "calibration", source.texts)),
            preprocess_function=lambda row: tokenizer(row[COLUMN], truncation=True, max_length=limit),
            num_samples=300,
            dataset_split=SPLIT,
            preprocess_batch=False,
        )
        quantizer.quantize(calibration, save_directory=out, ov_config=OVConfig(quantization_config=OVQuantizationConfig()))

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load with OpenVINO's defaults, except for the threads, and pool in numpy."""
        import torch
        from optimum.intel import OVModelForFeatureExtraction

        torch.set_num_threads(threads)
        options = {"INFERENCE_NUM_THREADS": str(threads)}
        model = OVModelForFeatureExtraction.from_pretrained(built, ov_config=options, local_files_only=True)

        def embed(tokens: Any) -> Any:
            ids, mask = tokens
            return pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, source.checkpoint)

        return embed


@dataclass(frozen=True)
class CTranslate2(Peer):
    """CTranslate2's converter for transformers, `quantization="int8"`."""

    libraries: ClassVar[tuple[str, ...]] = ("ctranslate2", "transformers", "torch")

    def build(self, source: Source, out: Path) -> None:
        """Convert."""
        from ctranslate2.converters import TransformersConverter

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "checkpoint"
            shutil.copytree(source.checkpoint, folder, copy_function=os.symlink, ignore=shutil.ignore_patterns("config.json"))
            config = json.loads((source.checkpoint / "config.json").read_bytes())
            # It reads a key that has no default in transformers 5 and may be missing from config.json.
            (folder / "config.json").write_text(json.dumps({"position_embedding_type": "absolute", **config}), encoding="utf-8")
            TransformersConverter(str(folder)).convert(str(out), quantization="int8", force=True)

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load, and pool in numpy."""
        import ctranslate2

        encoder = ctranslate2.Encoder(str(built), device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1)

        def embed(tokens: Any) -> Any:
            ids, mask = tokens
            # It takes rows of different lengths and pads them itself.
            rows = [row[: kept.sum()].tolist() for row, kept in zip(ids, mask, strict=True)]
            hidden = np.array(encoder.forward_batch(rows).last_hidden_state)
            return pool(hidden, mask[:, : hidden.shape[1]], source.checkpoint)

        return embed


@dataclass(frozen=True)
class FastEmbed(Peer):
    """fastembed with the plain fp32 export as a custom model, the form in which it ships all-MiniLM-L6-v2."""

    libraries: ClassVar[tuple[str, ...]] = ("fastembed", "onnxruntime")

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Register and load; fastembed takes the graph's first output, the hidden states, and pools them itself."""
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        name = "optbench/peer"
        TextEmbedding.add_custom_model(
            model=name,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf=name),
            dim=read_body(source.checkpoint).hidden,
            model_file=f"onnx/{ONNX}",
        )
        model = TextEmbedding(name, specific_model_path=str(source.export), threads=threads)

        def embed(texts: Sequence[str]) -> Any:
            return np.array(list(model.embed(list(texts), batch_size=32)), dtype=np.float32)

        return embed
