"""Structured pruning: fewer heads, narrower feed-forward parts and fewer layers, within a budget; no training.

The smaller body is an ordinary checkpoint whose config.json lists the sizes of each layer; every later step and engine accepts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.model.body import Body
from optbench.model.checkpoint import describe
from optbench.steps.base import BaseStep, CalibrationTexts, EvaluationTexts, Input, LayerLatencies, RecipeFiles, StepContext, StepReport
from optbench.steps.training.texts import TextPaths, check_texts, files_of_texts, gather_texts

if TYPE_CHECKING:
    from optbench.steps.pruning.costs import Costs
    from optbench.steps.pruning.latency import LayerTimes

__all__ = ["PruneStructured"]

# Fewer say nothing about the correlations of a layer's hundreds of inputs.
TEXTS_MIN = 32


class PruneStructured(BaseStep):
    """Remove heads, feed-forward neurons and layers of a checkpoint, and refit the remaining weights.

    The budget is one of `keep_flops`, `latency_ratio` and `latency_ms`. A latency is that of the body on this machine after the
    recipe's later steps, predicted from layer latencies that are measured once and cached. The remaining weights are fitted to the
    recipe's calibration texts and those of `texts`, none of which may be a test text of a task.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})
    gives: ClassVar[Kind] = Kind.CHECKPOINT
    version: ClassVar[int] = 5
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "numpy")
    pace: ClassVar[tuple[float, float]] = (60.0, 500.0)

    step: Literal["prune_structured"] = "prune_structured"
    keep_flops: float | None = Field(default=None, gt=0, lt=1, description="Share of the body's multiply-adds to keep.")
    latency_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="Latency relative to the whole body's: the mean over the workload's lengths, or at at_tokens."
    )
    latency_ms: float | None = Field(default=None, gt=0, description="Latency in ms on this machine at at_tokens.")
    at_tokens: int | None = Field(default=None, ge=1, description="The length at which the latency applies; one of the workload's.")
    rounds: int = Field(default=2, ge=1, le=20, description="Rounds of scoring, removing and refitting in which the budget is reached.")
    round_to: int = Field(default=64, ge=1, le=1024, description="Multiple to which attention and feed-forward widths are rounded.")
    damping: float = Field(
        default=0.01, gt=0, le=10, description="Share of the mean second moment added to the second moments for scoring."
    )
    refit_damping: float = Field(
        default=0.1, gt=0, le=10, description="Share of the mean second moment that regularizes a refit; use more with fewer texts."
    )
    lasting: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Share of an error in the first layer that later layers do not compensate; rises to 1 at the last layer.",
    )
    probes: int = Field(default=1, ge=1, le=64, description="Random directions per text embedding whose gradients weight the errors.")
    drop_layers: bool = Field(default=True, description="Whether whole layers may be removed.")
    int8: bool = Field(default=False, description="Include the rounding error of static int8 in the scores.")
    texts: TextPaths = ()
    max_texts: int = Field(default=1000, ge=1, description="At most so many texts from each path; affects run time.")
    seed: int = Field(default=0, ge=0, description="Random seed, for directions and texts.")

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in ("keep_flops", "latency_ratio", "latency_ms") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"set one of keep_flops, latency_ratio and latency_ms; found {' and '.join(given) or 'none'}")
        if (self.latency_ms is not None and self.at_tokens is None) or (self.keep_flops is not None and self.at_tokens is not None):
            raise ValueError("at_tokens is the length at which latency_ms applies: set both, and neither with keep_flops")
        return self

    def inputs(self) -> tuple[Input[Any], ...]:
        """Calibration texts; layer latencies for a latency budget; files and the evaluation texts to refuse where `texts` is set."""
        latencies = (LayerLatencies(),) if self.keep_flops is None else ()
        # A task's own calibration texts are disjoint from its test texts.
        named = (RecipeFiles(self.files, partial(check_texts, self.texts)), EvaluationTexts()) if self.texts else ()
        return (CalibrationTexts(), *latencies, *named)

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files of `texts`."""
        return files_of_texts(self.texts, folder)

    def budget(self, body: Body, times: LayerTimes | None) -> tuple[Costs, float]:
        """The cost of layer sizes, and the most that they may cost together.

        Raises StepError at a latency budget without layer latencies, or at another length than theirs, or above the whole body's latency.
        """
        from optbench.steps.pruning.costs import flops_costs, latency_costs

        if self.keep_flops is not None:
            costs = flops_costs(body)
            return costs, self.keep_flops * costs.total(body.sizes)
        if times is None:
            raise StepError(f"{self.step}: a latency budget needs measured layer latencies; run it with optbench apply")
        if self.at_tokens is not None and self.at_tokens not in times.lengths:
            raise StepError(
                f"{self.step}: at_tokens {self.at_tokens} is not among the workload's lengths {list(times.lengths)}; add it there"
            )
        lengths = times.lengths if self.at_tokens is None else (self.at_tokens,)
        if self.latency_ms is None:
            costs = latency_costs(times, {n: len(lengths) * times.body_ms(body.sizes, n) for n in lengths})
            budget = self.latency_ratio or 1.0
        else:
            costs, budget = latency_costs(times, dict.fromkeys(lengths, 1.0)), self.latency_ms
        if costs.total(body.sizes) <= budget:
            raise StepError(f"{self.step}: the whole body takes only {costs.total(body.sizes):.4g} ms; set a lower budget")
        return costs, budget

    def predict_layers(self, body: Body, times: LayerTimes) -> Sequence[tuple[int, int]]:
        """Sizes of a uniformly narrowed body within the budget: the best guess before any layer has been scored."""
        costs, budget = self.budget(body, times)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if costs.total(_narrowed(body, middle)) <= budget else (low, middle)
        return _narrowed(body, low)

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Prune `source` into `out`."""
        import torch

        from optbench.model.torch_model import load_torch_model, save_torch_model
        from optbench.steps.pruning.method import Pruner
        from optbench.steps.pruning.states import read_batches

        where = f"{source.path} {self.step}"
        description = describe(source.path)
        costs, budget = self.budget(description.body, context.get(LayerLatencies))
        total = costs.total(description.body.sizes)
        texts = gather_texts(self.texts, source.path, context, self.max_texts, self.seed)
        batches = read_batches(source.path, texts, where, TEXTS_MIN)
        free_disk(out, source.size_bytes, "the pruned checkpoint")
        torch.set_num_threads(context.machine.usable_threads)
        context.progress("loading the checkpoint", None)
        whole, model = load_torch_model(source.path), load_torch_model(source.path)
        for each in (whole, model):
            each.requires_grad_(False)
        pruner = Pruner(
            whole=whole,
            model=model,
            batches=batches,
            pooling=description.pooling,
            costs=costs,
            settings=self,
            where=where,
            progress=context.progress,
        )
        results = []
        for turn in range(self.rounds):
            after = total - (total - budget) * (turn + 1) / self.rounds
            results.append(pruner.run_round(after, (turn / self.rounds, (turn + 1) / self.rounds)))
        context.progress("writing the checkpoint", None)
        body = save_torch_model(model, source.path, out)
        return StepReport(
            matched={"layers": body.layers, "heads": sum(body.heads_by_layer), "neurons": sum(body.feed_forward_by_layer)},
            facts={
                "heads": list(body.heads_by_layer),
                "feed_forward": list(body.feed_forward_by_layer),
                "dropped_layers": [layer for result in results for layer in result.dropped],
                "kept_flops": body.weights / description.body.weights,
                **_predicted(context.get(LayerLatencies), description.body, body),
                "calibration_texts": sum(len(batch.ids) for batch in batches),
                "calibration_tokens": sum(int(batch.mask.sum()) for batch in batches),
                "cosine_by_round": [result.cosine for result in results],
                "predicted_by_round": [result.predicted for result in results],
            },
        )


def _narrowed(body: Body, share: float) -> list[tuple[int, int]]:
    return [(max(1, round(share * heads)), max(1, round(share * width))) for heads, width in body.sizes]


def _predicted(times: LayerTimes | None, whole: Body, pruned: Body) -> dict[str, JsonValue]:
    """The latency predicted from the layers', by length, for the record."""
    if times is None:
        return {}
    return {
        "predicted_ms": {str(n): times.body_ms(pruned.sizes, n) for n in times.lengths},
        "predicted_ratio": {str(n): times.body_ms(pruned.sizes, n) / times.body_ms(whole.sizes, n) for n in times.lengths},
    }
