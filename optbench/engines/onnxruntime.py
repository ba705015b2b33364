"""ONNX Runtime on the CPU."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.base import BaseEngine, Session, Streams, Threads
from optbench.engines.contract import EMBEDDING, INPUTS, check_graph
from optbench.errors import EngineError
from optbench.machine.cpu import Isa, usable_threads

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    from numpy.typing import NDArray

__all__ = ["OnnxRuntime", "Optimizer"]

# onnxruntime/core/common/logging/severity.h. Each exception is also logged, as an error (3): only worse is logged here.
LOG_FATAL = 4

Optimizer = Literal[
    "AttentionFusion",
    "BiasGeluFusion",
    "BiasSkipLayerNormFusion",
    "BiasSoftmaxFusion",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "ConstantSharing",
    "DoubleQDQPairsRemover",
    "DynamicQuantizeMatMulFusion",
    "EmbedLayerNormFusion",
    "FastGeluFusion",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GeluFusionL1",
    "GeluFusionL2",
    "GemmActivationFusion",
    "LayerNormFusionL1",
    "LayerNormFusionL2",
    "Level1_RuleBasedTransformer",
    "Level2_RuleBasedTransformer",
    "MatMulAddFusion",
    "MatMulIntegerToFloatFusion",
    "MatMulNBitsFusion",
    "MatMulScaleFusion",
    "MatmulTransposeFusion",
    "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "QuickGeluFusion",
    "ReshapeFusion",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
    "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
    "WeightBiasQuantization",
]
"""The graph transformers of ONNX Runtime 1.32 on a CPU that can change an encoder's graph, as its verbose log names them.

ONNX Runtime ignores unknown names without a word, so this type refuses them.
"""


class OnnxRuntime(BaseEngine):
    """ONNX Runtime's CPU execution provider.

    Its sessions are thread-safe. External weights are memory-mapped. ONNX Runtime refuses a graph that names a file outside its
    folder, or a custom operator.
    """

    opens: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})

    engine: Literal["onnxruntime"] = "onnxruntime"
    disabled_optimizers: tuple[Optimizer, ...] = Field(
        default=(), description="Graph transformers to disable. Some fusions cost time: SkipLayerNormFusion on int8 graphs."
    )
    graph_optimization: Literal["all", "extended", "basic", "disable"] = Field(
        default="all", description="How far the graph is optimized when it is loaded; disable runs it unchanged."
    )
    execution_mode: Literal["sequential", "parallel"] = Field(
        default="sequential", description="Whether independent nodes run in parallel, on inter_op_threads."
    )
    inter_op_threads: Threads | None = Field(default=None, description="Nodes that run at once with execution_mode parallel. Default: 1.")
    spinning: bool = Field(
        default=True, description="Idle threads spin while they wait: lower latency, but the cores stay busy between requests."
    )
    prepacking: bool = Field(
        default=True, description="Keep a second copy of the weights in the layout of the kernels: faster, but takes more memory."
    )
    memory_arena: bool = Field(default=True, description="Keep the memory of freed activations for the next run.")
    saturation_safe: bool = Field(
        default=False,
        description="Convert int8 weights to uint8 where int8 products saturate at 16 bits (AVX2 without VNNI); no effect on other CPUs.",
    )

    @property
    def precision(self) -> str:
        """Always `fp32`: the precision of all that is not quantized."""
        return "fp32"

    def isa_variables(self, isa: Isa) -> dict[str, str]:
        """ONNX Runtime has no switch for a smaller instruction set: always an EngineError."""
        raise EngineError(
            f"isa {isa}: onnxruntime selects its kernels by the CPU and cannot be limited to a smaller instruction set; "
            "measure with openvino or torch, or on such a CPU"
        )

    def open(self, artifact: Artifact) -> Session:
        """Load the graph."""
        return self._open(artifact)

    def open_streams(self, artifact: Artifact) -> Streams | None:
        """Load the graph for one thread per run, and run one batch per thread."""
        threads = self.threads or usable_threads()
        if threads == 1:
            return None
        return _OnnxRuntimeStreams(self.model_copy(update={"threads": 1})._open(artifact), threads)

    def _open(self, artifact: Artifact) -> "_OnnxRuntimeSession":
        self.check_opens(artifact)
        import onnxruntime

        try:
            # By file name: from bytes it could not find external weights, and would copy the others instead of mapping them.
            session = onnxruntime.InferenceSession(
                str(artifact.main_file),
                self._session_options(),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(self.disabled_optimizers),
            )
        except Exception as error:  # its exceptions have no other common base
            raise EngineError(f"{artifact.main_file}: ONNX Runtime cannot open it: {error}") from error
        name = str(artifact.main_file)
        check_graph(name, [node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()])
        return _OnnxRuntimeSession(session, name)

    def _session_options(self) -> "onnxruntime.SessionOptions":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_FATAL
        options.intra_op_num_threads = self.threads or usable_threads()
        options.inter_op_num_threads = self.inter_op_threads or 1
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = {
            "all": levels.ORT_ENABLE_ALL,
            "extended": levels.ORT_ENABLE_EXTENDED,
            "basic": levels.ORT_ENABLE_BASIC,
            "disable": levels.ORT_DISABLE_ALL,
        }[self.graph_optimization]
        modes = onnxruntime.ExecutionMode
        options.execution_mode = modes.ORT_PARALLEL if self.execution_mode == "parallel" else modes.ORT_SEQUENTIAL
        options.enable_cpu_mem_arena = self.memory_arena
        for key, value in {
            "session.intra_op.allow_spinning": self.spinning,
            "session.inter_op.allow_spinning": self.spinning,
            "session.disable_prepacking": not self.prepacking,
            "session.x64quantprecision": self.saturation_safe,
        }.items():
            options.add_session_config_entry(key, str(int(value)))
        return options


class _OnnxRuntimeSession(Session):
    def __init__(self, session: "onnxruntime.InferenceSession", name: str) -> None:
        self._session: Any = session
        self.name = name

    def embed(self, input_ids: "NDArray[np.int64]", attention_mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        if self._session is None:
            raise EngineError(f"{self.name}: the session is closed; open the artifact again")
        try:
            # Naming the output avoids a copy of last_hidden_state. An I/O binding saved nothing more.
            rows: NDArray[np.float32] = self._session.run([EMBEDDING], dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))[0]
        except Exception as error:
            raise EngineError(f"{self.name}: ONNX Runtime failed on {input_ids.shape} tokens: {error}") from error
        return rows

    def close(self) -> None:
        self._session = None


class _OnnxRuntimeStreams(Streams):
    """A single-threaded session, which is thread-safe, run by several threads."""

    def __init__(self, session: _OnnxRuntimeSession, threads: int) -> None:
        self._session, self._threads = session, threads
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="optbench-stream")

    def embed_batches(self, batches: "Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]") -> "Iterator[NDArray[np.float32]]":
        running: deque[Future[NDArray[np.float32]]] = deque()
        if (pool := self._pool) is None:
            raise EngineError(f"{self._session.name}: the session is closed; open the artifact again")
        try:
            for batch in batches:
                # A second batch per thread: while the caller pads the next and copies the last, no thread waits.
                if len(running) == 2 * self._threads:
                    yield running.popleft().result()
                running.append(pool.submit(self._session.embed, *batch))
            while running:
                yield running.popleft().result()
        finally:
            for each in running:
                each.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._session.close()
