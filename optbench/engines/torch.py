"""torch in eager mode: the reference."""

import gc
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.base import BaseEngine, Session
from optbench.engines.onednn import BF16_ISAS, max_isa_variables
from optbench.errors import BaseModelError, EngineError
from optbench.machine.cpu import Isa, read_machine, usable_threads

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Torch"]

# torch also uses MKL and its own vector kernels, each with its own switch.
# Source: aten/src/ATen/native/DispatchStub.cpp; oneMKL's reference, mkl_enable_instructions.
ATEN_CAPABILITY: dict[Isa, str] = {"sse4_1": "default", "avx2": "avx2", "avx2_vnni": "avx2"}
MKL_INSTRUCTIONS: dict[Isa, str] = {
    "sse4_1": "SSE4_2",
    "avx2": "AVX2",
    "avx2_vnni": "AVX2_E1",
    "avx512_core": "AVX512",
    "avx512_core_vnni": "AVX512_E1",
    "avx512_core_bf16": "AVX512_E3",
    "avx512_core_amx": "AVX512_E4",
}


class Torch(BaseEngine):
    """torch in eager mode, on the checkpoint itself.

    On a CPU that is not Intel's, MKL ignores the limit to a smaller instruction set.

    torch's thread count belongs to the process, so a session sets it again if another session has changed it.
    """

    opens: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})

    engine: Literal["torch"] = "torch"
    inference_precision: Literal["f32", "bf16"] = Field(
        default="f32", description="Precision of the transformer; bf16 needs a CPU with bf16 products. Pooling is always in f32."
    )

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`."""
        return {"f32": "fp32", "bf16": "bf16"}[self.inference_precision]

    def isa_variables(self, isa: Isa) -> dict[str, str]:
        """The environment variables that limit torch to `isa` in a new process; refused where bf16 is set and the set lacks it."""
        if self.inference_precision == "bf16" and isa not in BF16_ISAS:
            raise EngineError(f"isa {isa}: has no bf16 products; set the torch engine's inference_precision to f32")
        return {
            **max_isa_variables(isa),
            "ATEN_CPU_CAPABILITY": ATEN_CAPABILITY.get(isa, "avx512"),
            "MKL_ENABLE_INSTRUCTIONS": MKL_INSTRUCTIONS[isa],
        }

    def open(self, artifact: Artifact) -> Session:
        """Build the module."""
        self.check_opens(artifact)
        if self.inference_precision == "bf16" and not read_machine().has_bf16:
            raise EngineError(
                f"{artifact.path}: this CPU has no bf16 products, so torch would emulate them; set inference_precision to f32"
            )
        from optbench.model.torch_model import build_module

        try:
            module = build_module(artifact.path)
        except BaseModelError as error:
            raise EngineError(f"{artifact.path}: torch cannot open it: {error}") from error
        if self.inference_precision == "bf16":
            _run_body_in_bf16(module)
        return _TorchSession(module, self.threads or usable_threads(), str(artifact.path))


def _run_body_in_bf16(module: Any) -> None:
    """Cast the transformer to bf16, and its output back to f32: a mean over tokens in bf16 would lose 8 more bits."""
    import torch

    def widen(body: Any, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.float()
        return output

    module.body.to(torch.bfloat16)
    module.body.register_forward_hook(widen)


class _TorchSession(Session):
    def __init__(self, module: "torch.nn.Module", threads: int, name: str) -> None:
        self._module: Any = module
        self._threads = threads
        self._name = name

    def embed(self, input_ids: "NDArray[np.int64]", attention_mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        import torch

        if self._module is None:
            raise EngineError(f"{self._name}: the session is closed; open the artifact again")
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                # tensor() copies, so read-only arrays work too.
                _, embedding = self._module(torch.tensor(input_ids), torch.tensor(attention_mask))
        except (IndexError, RuntimeError) as error:
            raise EngineError(f"{self._name}: torch failed on {input_ids.shape} tokens: {error}") from error
        rows: NDArray[np.float32] = embedding.numpy()
        return rows

    def close(self) -> None:
        if self._module is not None:
            self._module = None
            # The module's class is local to build_module: a reference cycle keeps the weights until it is collected.
            gc.collect()
