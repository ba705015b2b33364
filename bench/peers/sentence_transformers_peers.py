"""sentence-transformers on its three backends, each quantized as its documentation shows in "Speeding up Inference"."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.peers.base import Embed, Peer, Source
from bench.peers.calibration import COLUMN, SPLIT, write_calibration_set

__all__ = ["OnnxPreset", "OpenVinoStatic", "Torch"]

BATCH_SIZE = 32


@dataclass(frozen=True)
class Torch(Peer):
    """The torch backend, fp32."""

    libraries: ClassVar[tuple[str, ...]] = ("sentence-transformers", "transformers", "torch")

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load the checkpoint."""
        return _embed_with(_load(source.checkpoint, threads), self.interface)


def _load(folder: Path, threads: int, **options: Any) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)


def _embed_with(model: Any, interface: str) -> Embed:
    import torch

    def embed_ids(tokens: Any) -> Any:
        with torch.inference_mode():
            features = dict(zip(("input_ids", "attention_mask"), map(torch.from_numpy, tokens), strict=True))
            return model(features)["sentence_embedding"].numpy()

    def embed_texts(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False)

    return embed_ids if interface == "ids" else embed_texts


@dataclass(frozen=True)
class OnnxPreset(Peer):
    """`export_dynamic_quantized_onnx_model` with the preset for this CPU."""

    environment: ClassVar[str] = "sentence-transformers-onnx"
    libraries: ClassVar[tuple[str, ...]] = ("sentence-transformers", "transformers", "optimum", "optimum-onnx", "onnxruntime", "torch")

    @staticmethod
    def _preset(source: Source) -> str:
        return "avx512_vnni" if source.isa.startswith("avx512_core_") else "avx2"

    def build(self, source: Source, out: Path) -> None:
        """Export with optimum, then quantize."""
        from sentence_transformers import export_dynamic_quantized_onnx_model

        model = _load(source.checkpoint, 1, backend="onnx", model_kwargs={"export": True, "provider": "CPUExecutionProvider"})
        model.save_pretrained(str(out))
        export_dynamic_quantized_onnx_model(model, self._preset(source), str(out))

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load the quantized file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        arguments = {
            "file_name": f"model_qint8_{self._preset(source)}.onnx",
            "provider": "CPUExecutionProvider",
            "session_options": options,
        }
        return _embed_with(_load(built, threads, backend="onnx", model_kwargs=arguments), self.interface)


@dataclass(frozen=True)
class OpenVinoStatic(Peer):
    """`export_static_quantized_openvino_model` with its defaults: 300 texts, padded to 384 tokens."""

    libraries: ClassVar[tuple[str, ...]] = ("sentence-transformers", "transformers", "optimum-intel", "openvino", "nncf", "torch")

    def build(self, source: Source, out: Path) -> None:
        """Export with optimum-intel, then quantize on our texts: its default data set is on a model hub."""
        from sentence_transformers import export_static_quantized_openvino_model

        model = _load(source.checkpoint, 1, backend="openvino", model_kwargs={"export": True})
        model.save_pretrained(str(out))
        calibration = write_calibration_set(out / "calibration", source.texts)
        export_static_quantized_openvino_model(
            model,
            None,
            str(out),
            dataset_name=str(calibration),
            dataset_config_name="default",
            dataset_split=SPLIT,
            column_name=COLUMN,
        )

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load the quantized file with OpenVINO's defaults, except for the threads."""
        arguments = {"file_name": "openvino_model_qint8_quantized.xml", "ov_config": {"INFERENCE_NUM_THREADS": str(threads)}}
        return _embed_with(_load(built, threads, backend="openvino", model_kwargs=arguments), self.interface)
