"""ONNX Runtime on the CPU."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optbench.artifact.folder import Artifact, Kind
from optbench.engines.base import BaseEngine, Session, Threads
from optbench.errors import EngineError
from optbench.machine.cpu import Isa, usable_threads

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntime", "Optimizer"]

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
# onnxruntime/core/common/logging/severity.h: what it raises it also logs as an error (3), and the exception says it already.
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
"""The graph transformers, of those ONNX Runtime 1.32 runs on a CPU, that can touch an encoder: the names in its verbose log.

ONNX Runtime takes any name and ignores those it does not know, so an unknown one is refused here.
"""


class OnnxRuntime(BaseEngine):
    """ONNX Runtime's CPU execution provider.

    Its sessions may be used from several threads at once. Weights outside the graph file are mapped, not read; a graph that
    names a file outside its folder, or an operator that ONNX Runtime does not bring itself, is refused by ONNX Runtime.
    """

    opens: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})

    engine: Literal["onnxruntime"] = "onnxruntime"
    disabled_optimizers: tuple[Optimizer, ...] = Field(
        default=(), description="Graph transformers to leave out: one that fuses can cost time (SkipLayerNormFusion on int8 graphs)."
    )
    graph_optimization: Literal["all", "extended", "basic", "disable"] = Field(
        default="all", description="How far the graph is rewritten on loading; disable runs it as it was written."
    )
    execution_mode: Literal["sequential", "parallel"] = Field(
        default="sequential", description="Whether independent nodes run side by side, on inter_op_threads."
    )
    inter_op_threads: Threads | None = Field(default=None, description="Nodes at once under execution_mode parallel; 1 when left out.")
    spinning: bool = Field(
        default=True, description="Idle threads spin for their next task: lower latency, and busy cores between two requests."
    )
    prepacking: bool = Field(default=True, description="Keep weights in the layout of the kernels: faster, and held a second time.")
    memory_arena: bool = Field(default=True, description="Keep freed activations for the next run rather than give them back.")
    saturation_safe: bool = Field(
        default=False,
        description="Turn int8 weights to uint8 where the CPU's int8 products saturate at 16 bits (AVX2 without VNNI); nothing elsewhere.",
    )

    @property
    def precision(self) -> str:
        """Always `fp32`: what is not quantized in the graph runs in it."""
        return "fp32"

    def environment(self, isa: Isa) -> dict[str, str]:
        """Refuse: ONNX Runtime has no switch for a smaller instruction set.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            f"isa {isa}: onnxruntime picks its kernels by what the CPU has and cannot be held to less; "
            "measure with openvino or torch, or on such a CPU"
        )

    def open(self, artifact: Artifact) -> Session:
        """Load the graph.

        Raises:
            EngineError: another kind of artifact, a broken graph, weights outside its folder, an operator that is not ONNX
                Runtime's, or a graph without the inputs and the output of optbench's contract.
        """
        self.check_opens(artifact)
        import onnxruntime

        try:
            # By file name: given bytes, it would know no folder, and would copy the weights rather than map them.
            session = onnxruntime.InferenceSession(
                str(artifact.main_file),
                self._session_options(),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(self.disabled_optimizers),
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineError(f"{artifact.main_file}: ONNX Runtime cannot open it: {error}") from error
        inputs = {node.name for node in session.get_inputs()}
        outputs = [node.name for node in session.get_outputs()]
        if inputs != set(INPUTS) or OUTPUT not in outputs:
            raise EngineError(
                f"{artifact.main_file}: takes {', '.join(sorted(inputs))} and gives {', '.join(outputs)}; "
                f"{' and '.join(INPUTS)} in and {OUTPUT} out are wanted: export it with export_onnx"
            )
        return _OnnxRuntimeSession(session, str(artifact.main_file))

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
        self._name = name

    def embed(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._session is None:
            raise EngineError(f"{self._name}: the session is closed; open the artifact again")
        try:
            # Naming the output spares the copy of last_hidden_state. An I/O binding was measured to save nothing on top.
            rows: NDArray[np.float32] = self._session.run([OUTPUT], {"input_ids": input_ids, "attention_mask": attention_mask})[0]
        except Exception as error:
            raise EngineError(f"{self._name}: ONNX Runtime failed on {input_ids.shape} tokens: {error}") from error
        return rows

    def close(self) -> None:
        self._session = None
