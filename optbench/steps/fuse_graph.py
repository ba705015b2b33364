"""Replace groups of operators with one that does the same work, where that is faster on this machine.

A fusion is named in the recipe, has a number of places it must take, and says of every place it left alone why. Whether it
is kept is a matter of price: engines fuse on their own when they load a graph, and some fused kernels are slower than what
they replace, so the graph is timed with and without it, as the engine would run it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from optbench.artifact.folder import Artifact, Kind, copy_companions
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.machine.frozen import Frozen
from optbench.model.checkpoint import read_body
from optbench.steps.base import BaseStep, Price, Refusal, StepContext, StepReport
from optbench.steps.onnx.file import read_onnx, weight_bytes, write_onnx
from optbench.steps.onnx.fusions import FUSIONS, Outcome
from optbench.steps.onnx.fusions.candidates import Candidates

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FuseGraph", "FusionEntry", "FusionName", "time_ratio"]

FusionName = Literal["attention", "packed_qkv", "bias_gelu", "skip_layer_norm", "embed_layer_norm"]

# A fusion that is as fast as what it replaces is kept: it loads faster. Medians of one graph timed twice differ by up to 1 %.
TOLERATED_RATIO = 1.01
# Lines of an error message; a 24-layer graph can refuse 48 places for one reason.
REFUSALS_SHOWN = 50


class FusionEntry(Frozen):
    """One fusion of a recipe."""

    name: FusionName = Field(description="Which fusion.")
    expected: int | None = Field(
        default=None, ge=0, description="Places it must take at least; all that a body of this shape has when left out."
    )
    keep: Literal["faster", "always"] = Field(
        default="faster",
        description="`faster` leaves it out where it costs time on this machine, in the precision that the graph has here: "
        "quantized later, what gained may cost. `always` does not ask.",
    )


class FuseGraph(BaseStep):
    """Fuse operators of an ONNX graph.

    The fusions are tried in the order of the recipe, each on the graph that those before it left. `attention` and
    `packed_qkv` rewrite the same places, so a recipe names one of them.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    gives: ClassVar[Kind] = Kind.ONNX
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript", "onnxruntime")
    needs_price: ClassVar[bool] = True

    step: Literal["fuse_graph"] = "fuse_graph"
    fusions: tuple[FusionEntry, ...] = Field(min_length=1, description="What to fuse, in this order.")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [entry.name for entry in self.fusions]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is named more than once; name each fusion once")
        if "attention" in names and "packed_qkv" in names:
            raise ValueError(
                "attention and packed_qkv rewrite the same places; keep attention for onnxruntime in fp32, "
                "packed_qkv for any other engine or where the projections are quantized afterwards"
            )
        return self

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Write the fused graph to `out/onnx/model.onnx`, with `model.onnx_data` beside it when the weights are large.

        Raises:
            StepError: the graph cannot be read; a fusion matched fewer places than expected; or one with `keep: faster` has
                no price.
            MachineError: the disk is full.
        """
        by_price = [entry.name for entry in self.fusions if entry.keep == "faster"]
        if by_price and context.price is None:
            raise StepError(
                f"fuse_graph: {', '.join(by_price)} is kept only if it is faster, and nothing here can time it; "
                "run it with optbench apply, or set `keep: always`"
            )
        model = read_onnx(source)
        # The output; to compare by price, also the unfused graph and every fusion's new weights, which are less than the old.
        copies = 3 if by_price else 1
        free_disk(out, copies * weight_bytes(model), "the fused graphs" if by_price else "the fused graph")
        # A fusion that does not match is known here, before minutes are spent on timing the others.
        self._fuse_all(source, model.clone())
        model, report = self._fuse_by_price(source, model, context)
        context.progress("writing the graph", None)
        write_onnx(model, out)
        copy_companions(source.path, out)
        return report

    def _fuse_all(self, source: Artifact, model: "ir.Model") -> None:
        for entry in self.fusions:
            _apply(source, entry, model)

    def _fuse_by_price(self, source: Artifact, model: "ir.Model", context: StepContext) -> "tuple[ir.Model, StepReport]":
        candidates = Candidates(source.path, context.scratch)
        folder: Path | None = None  # where `model` lies, once it was timed
        matched: dict[str, int] = {}
        refused: list[Refusal] = []
        facts: dict[str, JsonValue] = {}
        for number, entry in enumerate(self.fusions):
            context.progress(f"fusing {entry.name}", number / len(self.fusions))
            fused = model.clone()
            outcome, expected = _apply(source, entry, fused)
            fact: dict[str, JsonValue] = {"matched": outcome.matched, "expected": expected, "keep": entry.keep, "kept": True}
            fused_folder = None
            if entry.keep == "faster" and context.price is not None:
                folder = folder or candidates.write(model, f"before_{entry.name}")
                fused_folder = candidates.write(fused, entry.name)
                context.progress(f"timing {entry.name}", number / len(self.fusions))
                fact |= _compare(context.price, folder, fused_folder)
            facts[entry.name] = fact
            refused += outcome.refused
            if fact["kept"]:
                model, folder = fused, fused_folder
                matched[entry.name] = outcome.matched
        nodes = sum(1 for _ in model.graph)
        return model, StepReport(matched=matched, refused=tuple(refused), facts={"fusions": facts, "nodes": nodes})


def _apply(source: Artifact, entry: FusionEntry, model: "ir.Model") -> tuple[Outcome, int]:
    """Fuse in place; returns what was done, and how many places there were to be.

    Raises:
        StepError: it matched fewer.
    """
    fusion = FUSIONS[entry.name]
    outcome = fusion.apply(model)
    expected = fusion.expected(read_body(source.path)) if entry.expected is None else entry.expected
    if outcome.matched >= expected:
        return outcome, expected
    lines = [f"{refusal.node}: {refusal.reason}" for refusal in outcome.refused[:REFUSALS_SHOWN]]
    if len(outcome.refused) > REFUSALS_SHOWN:
        lines.append(f"and {len(outcome.refused) - REFUSALS_SHOWN} more")
    raise StepError(
        f"{source.main_file}: {entry.name} matched {outcome.matched} of {expected} places; take it out of the recipe, set its "
        "`expected`, or export the graph anew with export_onnx. Left alone:\n  "
        + "\n  ".join(lines or [f"nothing: the graph has no other {fusion.anchor} that could be one"])
    )


def _compare(price: Price, without: Path, with_it: Path) -> dict[str, JsonValue]:
    """Time a graph without and with a fusion; one that seems to cost time is timed again, the other way round.

    A busy moment must not decide what an artifact holds: a fusion is left out only if it cost time twice.

    Returns:
        for the report, of the better timing: milliseconds by token length and their ratio; how often it was timed; the verdict.
    """
    timings = []
    for order in (1, -1):
        without_ms, with_ms = price([without, with_it][::order])[::order]
        timings.append((time_ratio(without_ms, with_ms), without_ms, with_ms))
        if timings[-1][0] <= TOLERATED_RATIO:
            break
    ratio, without_ms, with_ms = min(timings, key=lambda timing: timing[0])
    return {
        "without_ms": _by_length(without_ms),
        "with_ms": _by_length(with_ms),
        "time_ratio": round(ratio, 4),
        "timed": len(timings),
        "kept": ratio <= TOLERATED_RATIO,
    }


def time_ratio(without_ms: Mapping[int, float], with_ms: Mapping[int, float]) -> float:
    """The geometric mean over the token lengths of the time with a fusion over the time without: below 1 it pays.

    Raises:
        StepError: the two were not timed at the same lengths, or at none.
    """
    if not without_ms or without_ms.keys() != with_ms.keys():
        raise StepError(f"the price is of {sorted(without_ms)} tokens without the fusion and of {sorted(with_ms)} with it; time both alike")
    return math.exp(sum(math.log(with_ms[length] / without_ms[length]) for length in without_ms) / len(without_ms))


def _by_length(latency_ms: Mapping[int, float]) -> dict[str, JsonValue]:
    return {str(length): round(latency_ms[length], 4) for length in sorted(latency_ms)}
