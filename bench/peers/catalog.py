"""Every row of the comparison."""

from bench.peers import own, pytorch, runtimes
from bench.peers import sentence_transformers_peers as sbert
from bench.peers.base import Interface, Peer

__all__ = ["OURS", "PEERS", "REFERENCE", "peers_of"]

REFERENCE = "torch eager"
"""The fp32 model that cosines are to."""
OURS = "optbench"

_IDS: tuple[Peer, ...] = (
    pytorch.PyTorch(REFERENCE, "ids", "fp32", "transformers with its default attention"),
    pytorch.TorchCompile("torch.compile (Inductor)", "ids", "fp32", "the same model, dynamic=True"),
    pytorch.Inductor("Inductor, PT2E static", "ids", "int8", "torchao's X86InductorQuantizer, 300 texts, frozen weights"),
    pytorch.NeuralCompressor("neural-compressor, PT2E static", "ids", "int8", "StaticQuantConfig, 300 texts, compiled by Inductor"),
    own.OnnxRuntimeExport("onnxruntime", "ids", "fp32", "plain export"),
    runtimes.OnnxRuntimeDynamic("onnxruntime quantize_dynamic", "ids", "int8", "plain export, defaults (per tensor)"),
    own.OpenVinoExport("openvino", "ids", "fp32", "plain export, held to fp32"),
    runtimes.OptimumIntel("optimum-intel OVQuantizer", "ids", "int8", "OVQuantizationConfig's defaults, 300 texts"),
    runtimes.CTranslate2("CTranslate2", "ids", "int8", "transformers converter, quantization int8"),
    own.Artifact(OURS, "ids", "int8", "the recipe's artifact"),
)
_TEXT: tuple[Peer, ...] = (
    sbert.Torch("sentence-transformers, torch", "text", "fp32", "model.encode"),
    sbert.OnnxPreset("sentence-transformers, ONNX preset", "text", "int8", "export_dynamic_quantized_onnx_model, model.encode"),
    sbert.OpenVinoStatic("sentence-transformers, OpenVINO static", "text", "int8", "export_static_quantized_openvino_model, model.encode"),
    runtimes.FastEmbed("fastembed", "text", "fp32", "add_custom_model, model.embed"),
    own.Artifact(OURS, "text", "int8", "encoder.encode"),
)
_SBERT_IDS: tuple[Peer, ...] = (
    sbert.Torch("sentence-transformers, torch", "ids", "fp32", "model(features)"),
    sbert.OnnxPreset("sentence-transformers, ONNX preset", "ids", "int8", "the same file, model(features)"),
    sbert.OpenVinoStatic("sentence-transformers, OpenVINO static", "ids", "int8", "the same file, model(features)"),
)

PEERS: tuple[Peer, ...] = (*_IDS[:-1], *_SBERT_IDS, _IDS[-1], *_TEXT)


def peers_of(interface: Interface) -> list[Peer]:
    """The peers with the same interface, which are timed together."""
    return [peer for peer in PEERS if peer.interface == interface]
