"""Replace groups of operators by one that does the same work, where that is faster on this machine.

A recipe names fusions; each must match an expected number of places, and gives a reason for every place left alone. Engines fuse on
their own when they load a graph, and some fused kernels are slower than what they replace, so the graph is timed with and without
each fusion, in the engine that will run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.machine.frozen import Frozen
from optbench.model.checkpoint import read_body
from optbench.steps.base import BaseStep, CandidateLatencies, Input, Refusal, StepContext, StepReport

if TYPE_CHECKING:
    import onnx_ir as ir

    from optbench.steps.onnx.fusions import Outcome

__all__ = ["FuseGraph", "FusionEntry", "FusionName", "time_ratio"]

FusionName = Literal["attention", "packed_qkv", "bias_gelu", "skip_layer_norm", "embed_layer_norm"]

# A fusion that is as fast as what it replaces is kept: the graph loads faster. Medians of one graph timed twice differ by up to 1 %.
TOLERATED_RATIO = 1.01
# Limit on the lines of an error message; a 24-layer graph can refuse 48 places for one reason.
REFUSALS_SHOWN = 50


class FusionEntry(Frozen):
    """One fusion in a recipe."""

    name: FusionName = Field(description="The fusion.")
    expected: int | None = Field(
        default=None, ge=0, description="Least number of places to match; if left out, all that a body of this shape has."
    )
    keep: Literal["faster", "always"] = Field(
        default="faster",
        description="faster: drop the fusion if the graph is slower with it on this machine, in the precision it has at this step (after "
        "quantization the result may differ); always: keep it untimed.",
    )


class FuseGraph(BaseStep):
    """Fuse operators of an ONNX graph.

    The fusions are tried in the recipe's order, each on the graph left by those before it. `attention` and `packed_qkv` rewrite the
    same places, so a recipe names one of them.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    gives: ClassVar[Kind] = Kind.ONNX
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript", "onnxruntime")

    step: Literal["fuse_graph"] = "fuse_graph"
    fusions: tuple[FusionEntry, ...] = Field(min_length=1, description="The fusions, in order.")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [entry.name for entry in self.fusions]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)}: named more than once; name each fusion once")
        if "attention" in names and "packed_qkv" in names:
            raise ValueError(
                "attention and packed_qkv rewrite the same places; keep attention for onnxruntime in fp32, "
                "packed_qkv for any other engine or where the projections are quantized afterwards"
            )
        return self

    def inputs(self) -> tuple[Input[Any], ...]:
        """Latencies of the graph with and without a fusion, where one is kept only if it is faster."""
        return (CandidateLatencies(),) if any(entry.keep == "faster" for entry in self.fusions) else ()

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Write the fused graph to `out/onnx/model.onnx`, with `model.onnx_data` beside it when the weights are large."""
        from optbench.steps.onnx.file import read_onnx, weight_bytes, write_onnx

        timed = [entry.name for entry in self.fusions if entry.keep == "faster"]
        if timed and context.get(CandidateLatencies) is None:
            raise StepError(
                f"fuse_graph: {', '.join(timed)} is kept only if it is faster, and cannot be timed here; "
                "run it with optbench apply, or set `keep: always`"
            )
        model = read_onnx(source)
        # The output; to time fusions, also the unfused graph and every fusion's new weights, which are smaller than the old ones.
        copies = 3 if timed else 1
        free_disk(out, copies * weight_bytes(model), "the fused graphs" if timed else "the fused graph")
        # A fusion that does not match fails here, before minutes are spent on timing the others.
        trial = model.clone()
        for entry in self.fusions:
            _apply(source, entry, trial)
        model, report = self._fuse_faster(source, model, context)
        context.progress("writing the graph", None)
        write_onnx(model, out)
        copy_companions(source.path, out)
        return report

    def _fuse_faster(self, source: Artifact, model: ir.Model, context: StepContext) -> tuple[ir.Model, StepReport]:
        from optbench.steps.onnx.fusions.candidates import Candidates

        candidates = Candidates(source.path, context.scratch)
        folder: Path | None = None  # of `model`, once it has been timed
        matched: dict[str, int] = {}
        refused: list[Refusal] = []
        facts: dict[str, JsonValue] = {}
        for number, entry in enumerate(self.fusions):
            context.progress(f"fusing {entry.name}", number / len(self.fusions))
            fused = model.clone()
            outcome, expected = _apply(source, entry, fused)
            fact: dict[str, JsonValue] = {"matched": outcome.matched, "expected": expected, "keep": entry.keep, "kept": True}
            fused_folder = None
            if entry.keep == "faster":
                folder = folder or candidates.write(model, f"before_{entry.name}")
                fused_folder = candidates.write(fused, entry.name)
                context.progress(f"timing {entry.name}", number / len(self.fusions))
                fact |= _compare(context.need(CandidateLatencies), folder, fused_folder)
            facts[entry.name] = fact
            refused += outcome.refused
            if fact["kept"]:
                model, folder = fused, fused_folder
                matched[entry.name] = outcome.matched
        nodes = sum(1 for _ in model.graph)
        return model, StepReport(matched=matched, refused=tuple(refused), facts={"fusions": facts, "nodes": nodes})


def _apply(source: Artifact, entry: FusionEntry, model: ir.Model) -> tuple[Outcome, int]:
    """Fuse in place, and refuse fewer places than expected; returns the outcome and the expected number."""
    from optbench.steps.onnx.fusions import FUSIONS

    fusion = FUSIONS[entry.name]
    outcome = fusion.apply(model)
    expected = fusion.expected(read_body(source.path)) if entry.expected is None else entry.expected
    if outcome.matched >= expected:
        return outcome, expected
    lines = [f"{refusal.node}: {refusal.reason}" for refusal in outcome.refused[:REFUSALS_SHOWN]]
    if len(outcome.refused) > REFUSALS_SHOWN:
        lines.append(f"and {len(outcome.refused) - REFUSALS_SHOWN} more")
    raise StepError(
        f"{source.main_file}: {entry.name} matched {outcome.matched} of {expected} places; remove it from the recipe, set its "
        "`expected`, or export the graph again with export_onnx. Left alone:\n  "
        + "\n  ".join(lines or [f"nothing: the graph has no other {fusion.anchor}"])
    )


def _compare(measure: Callable[[Sequence[Path]], list[Mapping[int, float]]], without: Path, with_it: Path) -> dict[str, JsonValue]:
    """Time a graph without and with a fusion; if it seems slower, time it again in reverse order.

    A busy moment must not decide what an artifact contains: a fusion is dropped only if it was slower twice. The report has the better
    timing: milliseconds by token length and their ratio.
    """
    timings = []
    for order in (1, -1):
        without_ms, with_ms = measure([without, with_it][::order])[::order]
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
    """Time with a fusion over time without it, geometric mean over token lengths: below 1 is faster."""
    return geometric_mean(with_ms[length] / without_ms[length] for length in without_ms)


def _by_length(latency_ms: Mapping[int, float]) -> dict[str, JsonValue]:
    return {str(length): round(latency_ms[length], 4) for length in sorted(latency_ms)}
