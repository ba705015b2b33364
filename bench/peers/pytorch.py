"""torch: eager, torch.compile, and Inductor on a graph quantized by PT2E with torchao or neural-compressor."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Embed, Peer, Source, pool, tokens_of
from optbench.model.checkpoint import read_max_tokens
from optbench.model.torch_model import build_module

__all__ = ["Inductor", "NeuralCompressor", "PyTorch", "TorchCompile"]

# The default number of sentence-transformers and optimum-intel.
CALIBRATION_TEXTS = 300
QUANTIZED = "quantized.pt2"


def _load_body(checkpoint: Path, threads: int) -> Any:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    return AutoModel.from_pretrained(checkpoint, local_files_only=True, dtype=torch.float32).eval()


@dataclass(frozen=True)
class PyTorch(Peer):
    """transformers' model in eager mode, with the attention that transformers chooses (SDPA)."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load it and pool in numpy."""
        return _embed_with(self._prepare(_load_body(source.checkpoint, threads)), source.checkpoint)

    def _prepare(self, body: Any) -> Any:
        return body


@dataclass(frozen=True)
class TorchCompile(PyTorch):
    """The same under torch.compile, with one graph for all lengths, as its defaults do from the second length on."""

    def _prepare(self, body: Any) -> Any:
        import torch

        return torch.compile(body, dynamic=True)


def _embed_with(body: Any, checkpoint: Path) -> Embed:
    import torch

    def embed(tokens: Any) -> Any:
        ids, mask = tokens
        with torch.inference_mode():
            hidden = body(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
        return pool(hidden.numpy(), mask, checkpoint)

    return embed


@dataclass(frozen=True)
class _Pt2e(Peer):
    """PyTorch 2 export quantization, calibrated, converted, and compiled by Inductor with frozen weights."""

    def build(self, source: Source, out: Path) -> None:
        """Export with a dynamic length, calibrate on real texts, convert, save."""
        import torch

        tokens = tokens_of(source.checkpoint, source.texts[:CALIBRATION_TEXTS])
        length = torch.export.Dim("tokens", min=2, max=read_max_tokens(source.checkpoint))
        module = build_module(source.checkpoint).eval()
        longest, mask = max(tokens, key=lambda each: each[0].shape[1])
        example = (torch.from_numpy(longest), torch.from_numpy(mask))
        with torch.no_grad():
            shapes = ({1: length}, {1: length})
            prepared = self._prepare(module, example, shapes)
            for each in tokens:
                prepared(*map(torch.from_numpy, each))
            converted = self._convert(prepared)
            torch.export.save(torch.export.export(converted, example, dynamic_shapes=shapes), out / QUANTIZED)

    @abstractmethod
    def _prepare(self, module: Any, example: Any, shapes: Any) -> Any:
        """Export the module and insert the observers."""

    @abstractmethod
    def _convert(self, prepared: Any) -> Any:
        """Replace the observers by quantized operators."""

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load and compile; the first run does the work, or finds it in Inductor's cache."""
        import torch
        import torch._inductor.config as inductor

        # Importing it registers the passes that replace quantized patterns by int8 products.
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

        torch.set_num_threads(threads)
        inductor.freezing = True
        module = torch.compile(torch.export.load(built / QUANTIZED).module(), dynamic=True)

        def embed(tokens: Any) -> Any:
            with torch.no_grad():
                rows = [
                    module(*(torch.from_numpy(part[index : index + 1]) for part in tokens))[1].numpy() for index in range(len(tokens[0]))
                ]
            return np.concatenate(rows)

        return embed


@dataclass(frozen=True)
class Inductor(_Pt2e):
    """With torchao's quantizer for Inductor on x86."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchao")

    def _prepare(self, module: Any, example: Any, shapes: Any) -> Any:
        import torch
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        return prepare_pt2e(torch.export.export(module, example, dynamic_shapes=shapes).module(), quantizer)

    def _convert(self, prepared: Any) -> Any:
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        return converted


@dataclass(frozen=True)
class NeuralCompressor(_Pt2e):
    """With neural-compressor's static quantization."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchao", "neural-compressor")

    def _prepare(self, module: Any, example: Any, shapes: Any) -> Any:
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, prepare

        return prepare(export(module, example, dynamic_shapes=shapes), StaticQuantConfig())

    def _convert(self, prepared: Any) -> Any:
        from neural_compressor.torch.quantization import convert

        return convert(prepared)
