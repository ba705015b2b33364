"""OpenVINO on the CPU."""

import os
import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.base import BaseEngine, Session, Streams
from optbench.engines.contract import EMBEDDING, INPUTS, check_graph
from optbench.engines.onednn import BELOW_AMX, BF16_ISAS, MAX_ISA, max_isa_variables, stay_off_amx, vector_floats
from optbench.engines.openvino_streams import OpenVinoStreams
from optbench.errors import BaseModelError, EngineError
from optbench.machine.cpu import Isa, usable_threads
from optbench.model.body import Body
from optbench.model.checkpoint import read_body

if TYPE_CHECKING:
    import numpy as np
    import openvino
    from numpy.typing import NDArray

__all__ = ["STATIC_LENGTHS", "OpenVino"]

STATIC_LENGTHS = ("optbench", "static_lengths")
"""The rt_info key under which an IR stores its static lengths, `"8 16 32"`."""
# Each static length keeps its own compiled model in memory.
STATIC_LENGTHS_MAX = 16
# oneDNN's softmax adds each of four vectors to a sum of its own, and what is left after the last whole vector to the first sum. Up to
# two vectors, padding changes no sum; beyond, it can change the last bit. Source: oneDNN, src/cpu/x64/jit_uni_softmax.cpp.
PADDED_VECTORS_MAX = 2


class OpenVino(BaseEngine):
    """OpenVINO's CPU plugin, set for latency: one stream, one request. Weights are memory-mapped.

    With static lengths, a single text is padded to the next one and runs on a graph compiled for that shape. This avoids the shape
    inference and planning of dynamic shapes: 5 to 25 % of the time, most for small models and short texts. A batch, a longer text, and
    one that needs too much padding run the dynamic graph. Each static length keeps its own copy of the weights in the layout of the
    kernels. Static int8 made by `quantize_static` computes the same vector in both: a text is padded only where that changes no sum.
    """

    opens: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO, Kind.ONNX})

    engine: Literal["openvino"] = "openvino"
    inference_precision: Literal["f32", "bf16", "f16"] = Field(
        default="f32",
        description="Precision of all that is not quantized (INFERENCE_PRECISION_HINT). OpenVINO's default is bf16 where the CPU has it.",
    )
    dynamic_quantization_group: int | None = Field(
        default=None,
        ge=0,
        le=65536,
        description="Activations that share an int8 scale in layers with compressed weights; 0 keeps them in floating point. Default: "
        "what the IR says, else OpenVINO's 32. At most a layer's number of inputs: above it OpenVINO skips the layer silently.",
    )
    static_lengths: tuple[int, ...] | None = Field(
        default=None,
        max_length=STATIC_LENGTHS_MAX,
        description="Token lengths to compile as static shapes, ascending; an empty list for none. Default: what the IR says.",
    )
    # On 2 cores, a static shape saves all-MiniLM-L6-v2 in static int8 the time of 8 to 13 tokens, at any length from 8 to 128.
    static_padding_max: int = Field(
        default=8,
        ge=0,
        description="The most padding tokens to reach a static length; a text that needs more runs the dynamic graph. Static lengths "
        "above 16 (32 with AVX-512) take texts of exactly that length, because padding would change the softmax's last bit.",
    )
    compile_on_first_use: bool = Field(
        default=False,
        description="Compile each shape on its first input: opens faster and takes less memory, but that input waits.",
    )
    scheduling_core_type: Literal["ANY_CORE", "PCORE_ONLY", "ECORE_ONLY"] | None = Field(
        default=None, description="Which cores of a hybrid CPU to use. Default: OpenVINO's choice."
    )
    enable_cpu_pinning: bool | None = Field(default=None, description="Pin threads to cores. Default: OpenVINO's choice.")
    enable_hyper_threading: bool | None = Field(
        default=None, description="Use both threads of a core. Default: OpenVINO's choice, which is no for latency."
    )

    @field_validator("static_lengths")
    @classmethod
    def _check_lengths(cls, lengths: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if lengths and (min(lengths) < 1 or list(lengths) != sorted(set(lengths))):
            raise ValueError(f"{' '.join(map(str, lengths))}: expected ascending token lengths of at least 1, such as 8 16 32")
        return lengths

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[self.inference_precision]

    def isa_variables(self, isa: Isa) -> dict[str, str]:
        """The environment variables that limit OpenVINO to `isa` in a new process; refused where the set lacks `inference_precision`."""
        # OpenVINO checks the CPU for bf16, not the limit, and then fails on the first operator.
        if self.inference_precision != "f32" and isa not in BF16_ISAS:
            raise EngineError(f"isa {isa}: has no {self.precision} products; set the openvino engine's inference_precision to f32")
        return max_isa_variables(isa)

    def reference(self, artifact: Artifact) -> Self:
        """The same engine without static lengths, if it has any."""
        if self.static_lengths is None and not _names_lengths(artifact):
            return self
        return self.model_copy(update={"static_lengths": ()}) if self.static_lengths != () else self

    def open(self, artifact: Artifact) -> Session:
        """Read and compile the graph."""
        name = str(artifact.main_file)
        model, body = self._read_graph(artifact)
        lengths = self.static_lengths
        if lengths is None:
            lengths = _lengths_of(model, name)
        if lengths and lengths[-1] > body.position_limit:
            raise EngineError(f"{name}: static length {lengths[-1]}, but the model's positions end at {body.position_limit}; remove it")
        session = _OpenVinoSession(model, self, lengths, body, name)
        if not self.compile_on_first_use:
            session.compile_all()
        return session

    def open_streams(self, artifact: Artifact) -> Streams | None:
        """Compile the graph for any batch and length, in as many streams as OpenVINO chooses for throughput."""
        if (self.threads or usable_threads()) == 1:
            return None
        model, body = self._read_graph(artifact)
        name = str(artifact.main_file)
        return OpenVinoStreams(self.compile(model, name, streams=True), lambda ids: check_ids(ids, body, name), name)

    def _read_graph(self, artifact: Artifact) -> "tuple[openvino.Model, Body]":
        self.check_opens(artifact)
        try:
            body = read_body(artifact.path)
        except BaseModelError as error:
            raise EngineError(f"{artifact.path}: OpenVINO cannot open it: {error}") from error
        return _read(artifact), body

    def compile(self, model: "openvino.Model", name: str, *, streams: bool = False) -> "openvino.CompiledModel":
        """Compile a graph, and check that OpenVINO applied the options, some of which it replaces silently, and keeps int8 off AMX.

        Args:
            model: is changed by OpenVINO.
            name: of its file, for errors.
            streams: for throughput, in several streams; else for latency, in one.
        """
        import openvino

        integer = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        off_amx = (integer or self.inference_precision == "f32") and stay_off_amx()
        requested: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT" if streams else "LATENCY",
            "NUM_STREAMS": None if streams else 1,
            "INFERENCE_PRECISION_HINT": getattr(openvino.Type, self.inference_precision),
            "INFERENCE_NUM_THREADS": self.threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.dynamic_quantization_group,
            "SCHEDULING_CORE_TYPE": self.scheduling_core_type,
            "ENABLE_CPU_PINNING": self.enable_cpu_pinning,
            "ENABLE_HYPER_THREADING": self.enable_hyper_threading,
        }
        # OpenVINO respects affinity but not the quota. Without a limit, its own choice is best: it avoids the slow cores of a hybrid CPU.
        if self.threads is None and (limit := usable_threads()) < (os.cpu_count() or 1):
            requested["INFERENCE_NUM_THREADS"] = limit
        options = {key: value for key, value in requested.items() if value is not None}
        try:
            compiled = openvino.Core().compile_model(model, "CPU", options)
            applied = {key: compiled.get_property(key) for key in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS")}
        except RuntimeError as error:
            raise EngineError(f"{name}: OpenVINO cannot compile it: {error}") from error
        if applied["INFERENCE_PRECISION_HINT"] != requested["INFERENCE_PRECISION_HINT"]:
            found = applied["INFERENCE_PRECISION_HINT"].get_type_name()
            raise EngineError(f"{name}: OpenVINO runs {found} on this CPU, not {self.inference_precision}; set inference_precision to f32")
        if integer and off_amx and "AMX" in compiled.get_property("RUNTIME_REQUIREMENTS"):
            raise EngineError(
                f"{name}: OpenVINO runs int8 on AMX in this process, which is broken for inputs of any length (its issue 37577); "
                f"set {MAX_ISA}={BELOW_AMX} before it starts"
            )
        if self.threads is not None and applied["INFERENCE_NUM_THREADS"] != self.threads:
            raise EngineError(
                f"{name}: OpenVINO runs {applied['INFERENCE_NUM_THREADS']} threads here, not {self.threads}; lower threads to what "
                "the cores, the affinity mask and scheduling_core_type allow, or set enable_hyper_threading"
            )
        return compiled


def _read(artifact: Artifact) -> "openvino.Model":
    """Read the graph, weights memory-mapped, and remove all outputs but the embedding."""
    name = str(artifact.main_file)
    from openvino.frontend import FrontEndManager

    # The front end is named: Core.read_model would try a broken file on six others too, and print what each says.
    try:
        front_end = FrontEndManager().load_by_framework("onnx" if artifact.kind is Kind.ONNX else "ir")
        model = front_end.convert(front_end.load(name))
    except Exception as error:  # the front ends' errors have no other common base
        cure = "; open it with onnxruntime" if "No conversion rule" in str(error) else ""
        raise EngineError(f"{name}: OpenVINO cannot read it: {str(error).strip()}{cure}") from error
    outputs = {port.any_name: port for port in model.outputs}
    check_graph(name, [port.any_name for port in model.inputs], outputs)
    for output, port in outputs.items():
        if output != EMBEDDING:
            model.remove_result(port.get_node())
    return model


def check_ids(input_ids: "NDArray[np.int64]", body: Body, name: str) -> None:
    """Refuse token ids or a length that the model has no rows for.

    OpenVINO 2026.4 reads an id beyond the table as zeros and, on one thread, ignores an exception of a kernel and returns the
    previous result.
    """
    tokens = input_ids.shape[1]
    if tokens > body.position_limit or input_ids.max() >= body.vocabulary:
        raise EngineError(
            f"{name}: {tokens} tokens with ids up to {input_ids.max()}; the model takes at most {body.position_limit} tokens with ids "
            f"below {body.vocabulary}"
        )


def _names_lengths(artifact: Artifact) -> bool:
    """Whether an artifact's IR has static lengths; read from its text, so that nothing is loaded."""
    if artifact.kind is not Kind.OPENVINO:
        return False
    return re.search(rb"<" + STATIC_LENGTHS[1].encode() + rb"\b", artifact.main_file.read_bytes()) is not None


def _lengths_of(model: "openvino.Model", name: str) -> tuple[int, ...]:
    """The static lengths in an IR's rt_info; empty if it has none."""
    if not model.has_rt_info(list(STATIC_LENGTHS)):
        return ()
    text = model.get_rt_info(list(STATIC_LENGTHS)).astype(str)
    try:
        return OpenVino(static_lengths=tuple(int(length) for length in text.split())).static_lengths or ()
    except ValueError as error:
        raise EngineError(f"{name}: rt_info {'/'.join(STATIC_LENGTHS)} is {text[:80]!r}; expected ascending lengths: {error}") from error


class _StaticRequest:
    """A graph compiled for one text of one length, and the two input rows that it reads."""

    def __init__(self, compiled: "openvino.CompiledModel", length: int, pad_id: int) -> None:
        import numpy as np
        import openvino

        self._request = compiled.create_infer_request()
        self._pad_id = pad_id
        self._rows = {name: np.zeros((1, length), dtype=np.int64) for name in INPUTS}
        for name, row in self._rows.items():
            self._request.set_tensor(name, openvino.Tensor(row, shared_memory=True))

    def __call__(self, input_ids: "NDArray[np.int64]", attention_mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        tokens = input_ids.shape[1]
        ids, mask = self._rows["input_ids"], self._rows["attention_mask"]
        # RoBERTa-like bodies count positions by the ids that are not padding.
        ids[0, :tokens], ids[0, tokens:] = input_ids[0], self._pad_id
        mask[0, :tokens], mask[0, tokens:] = attention_mask[0], 0
        self._request.infer(share_outputs=True)
        return _copy_output(self._request)


class _DynamicRequest:
    """The graph compiled for any batch and length."""

    def __init__(self, compiled: "openvino.CompiledModel") -> None:
        self._request = compiled.create_infer_request()
        self._held: tuple[NDArray[np.int64], ...] = ()

    def __call__(self, input_ids: "NDArray[np.int64]", attention_mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        import numpy as np
        from openvino import Tensor

        # The request reads these arrays in place, so they must live as long as it refers to them.
        self._held = tuple(np.require(array, np.int64, ("C", "W")) for array in (input_ids, attention_mask))
        for name, array in zip(INPUTS, self._held, strict=True):
            self._request.set_tensor(name, Tensor(array, shared_memory=True))
        self._request.infer(share_outputs=True)
        return _copy_output(self._request)


def _copy_output(request: Any) -> "NDArray[np.float32]":
    # The next run overwrites this memory.
    rows: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
    return rows


class _OpenVinoSession(Session):
    """One request per static length, and the dynamic one under None."""

    def __init__(self, model: "openvino.Model", engine: OpenVino, lengths: tuple[int, ...], body: Body, name: str) -> None:
        self._model: Any = model
        self._engine, self._lengths, self._body, self._name = engine, lengths, body, name
        self._requests: dict[int | None, _StaticRequest | _DynamicRequest] = {}
        self._padded_max = PADDED_VECTORS_MAX * vector_floats()

    def compile_all(self) -> None:
        """Compile every shape, then free the graph."""
        for length in (*self._lengths, None):
            self._request(length)
        self._model = None

    def _request(self, length: int | None) -> "_StaticRequest | _DynamicRequest":
        if (request := self._requests.get(length)) is not None:
            return request
        if self._model is None:
            raise EngineError(f"{self._name}: the session is closed; open the artifact again")
        if length is None:
            self._requests[None] = _DynamicRequest(self._engine.compile(self._model, self._name))
        else:
            fixed = self._model.clone()
            fixed.reshape({key: [1, length] for key in INPUTS})
            self._requests[length] = _StaticRequest(self._engine.compile(fixed, self._name), length, self._body.pad_id)
        return self._requests[length]

    def _static_length(self, tokens: int) -> int | None:
        """The static length to pad a text to; None if it would need too much padding, or padding that changes its vector."""
        length = next((length for length in self._lengths if length >= tokens), None)
        if length is None or length == tokens:
            return length
        return length if length <= self._padded_max and length - tokens <= self._engine.static_padding_max else None

    def embed(self, input_ids: "NDArray[np.int64]", attention_mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        batch, tokens = input_ids.shape
        check_ids(input_ids, self._body, self._name)
        request = self._request(self._static_length(tokens) if batch == 1 else None)
        try:
            return request(input_ids, attention_mask)
        except RuntimeError as error:
            # OpenVINO 2026.4 lacks kernels for static int8 below AVX2.
            cure = (
                "; limited to SSE4.1, it has no int8 kernels: choose a larger instruction set" if os.environ.get(MAX_ISA) == "SSE41" else ""
            )
            raise EngineError(f"{self._name}: OpenVINO failed on {input_ids.shape} tokens: {str(error).strip()}{cure}") from error

    def close(self) -> None:
        self._model = None
        self._requests.clear()
