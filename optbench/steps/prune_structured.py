"""Structured pruning: fewer heads, narrower feed-forward parts and fewer layers, within a budget; no training.

The smaller body is an ordinary checkpoint whose config.json says the sizes of each layer: every later step and engine takes it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from optbench.artifact.folder import Artifact, Kind
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.model.checkpoint import Body, describe
from optbench.model.torch_model import load_torch_model, save_torch_model
from optbench.steps.base import BaseStep, StepContext, StepReport
from optbench.steps.pruning.latency import LayerTimes
from optbench.steps.pruning.method import Costs, Pruner
from optbench.steps.pruning.states import read_batches
from optbench.steps.training.texts import TextPaths, files_of_texts, gather_texts

__all__ = ["PruneStructured"]

# Fewer say nothing of what a layer's hundreds of inputs do together.
TEXTS_MIN = 32


class PruneStructured(BaseStep):
    """Remove heads, feed-forward neurons and layers of a checkpoint, and refit what stays.

    The budget is one of `keep_flops`, `latency_ratio` and `latency_ms`. A latency is that of the body as the recipe's further
    steps finish it, on this machine, from times of its layers that are measured once and kept. What stays is fitted to
    the recipe's calibration texts and those of `texts`, none of which a task may ask or judge.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})
    gives: ClassVar[Kind] = Kind.CHECKPOINT
    version: ClassVar[int] = 4
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "numpy")
    needs_calibration: ClassVar[bool] = True

    step: Literal["prune_structured"] = "prune_structured"
    keep_flops: float | None = Field(default=None, gt=0, lt=1, description="Share of the multiply-adds of the body's weights to keep.")
    latency_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="Latency over the whole body's; the mean over the workload's lengths, or at at_tokens."
    )
    latency_ms: float | None = Field(default=None, gt=0, description="Milliseconds on this machine at at_tokens.")
    at_tokens: int | None = Field(default=None, ge=1, description="The one length that the latency holds for; one of the workload's.")
    rounds: int = Field(default=2, ge=1, le=20, description="In how many rounds of scoring, removing and refitting the budget is reached.")
    round_to: int = Field(default=64, ge=1, le=1024, description="Widths of heads together and of feed-forward parts are multiples of it.")
    damping: float = Field(default=0.01, gt=0, le=10, description="Share of the mean second moment that is added to the scores' moments.")
    refit_damping: float = Field(
        default=0.1, gt=0, le=10, description="Share of the mean second moment that holds weights in a refit; the fewer texts, the more."
    )
    lasting: float = Field(
        default=0.6, gt=0, le=1, description="Share of the first layer's loss that the layers behind it do not make good; 1 at the last."
    )
    probes: int = Field(default=1, ge=1, le=64, description="Random directions of each text's embedding whose gradients weigh the errors.")
    drop_layers: bool = Field(default=True, description="Whether whole layers may go.")
    int8: bool = Field(default=False, description="The model will run in static int8: a unit that goes takes its rounding error along.")
    texts: TextPaths = ()
    max_texts: int = Field(default=1000, ge=1, description="At most so many texts of each source; time goes with them.")
    seed: int = Field(default=0, ge=0, description="Of the random directions, and of the texts that are drawn.")

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in ("keep_flops", "latency_ratio", "latency_ms") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of keep_flops, latency_ratio and latency_ms; {' and '.join(given) or 'none'} given")
        if (self.latency_ms is not None and self.at_tokens is None) or (self.keep_flops is not None and self.at_tokens is not None):
            raise ValueError("at_tokens says at which length latency_ms holds: give both, and neither with keep_flops")
        return self

    @property
    def needs_judged(self) -> bool:
        """Only where texts are named: what a task gives to calibrate on is apart from its test."""
        return bool(self.texts)

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files of `texts`."""
        return files_of_texts(self.texts, folder)

    @property
    def needs_layer_times(self) -> bool:
        """Whether the budget is a latency, and so rests on times measured on this machine."""
        return self.keep_flops is None

    def budget(self, body: Body, times: LayerTimes | None) -> tuple[Costs, float]:
        """What sizes cost, and what they may cost together.

        Raises:
            StepError: a latency is asked for and no times are at hand, or not at its length; or the whole body meets it already.
        """
        if self.keep_flops is not None:
            costs = flops_costs(body)
            return costs, self.keep_flops * costs.total(body.sizes)
        if times is None:
            raise StepError(f"{self.step}: a latency is asked for, and nothing here has timed the layers; run it with optbench apply")
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
            raise StepError(f"{self.step}: the whole body takes {costs.total(body.sizes):.4g} ms already; ask for less than that")
        return costs, budget

    def foresee(self, body: Body, times: LayerTimes) -> list[tuple[int, int]]:
        """Sizes of an evenly narrowed body within the budget: what a plan can say before any layer has been looked at."""
        costs, budget = self.budget(body, times)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if costs.total(_narrowed(body, middle)) <= budget else (low, middle)
        return _narrowed(body, low)

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Prune `source` into `out`.

        Raises:
            BaseModelError: the checkpoint is not whole.
            TaskError: a file of texts that cannot be read.
            StepError: too few texts, texts of the test, a budget out of reach, or activations that are not finite.
            MachineError: it could not be written.
        """
        import torch

        where = f"{source.path} {self.step}"
        description = describe(source.path)
        costs, budget = self.budget(description.body, context.layer_times)
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
            round_to=self.round_to,
            damping=self.damping,
            refit_damping=self.refit_damping,
            lasting=self.lasting,
            probes=self.probes,
            drop_layers=self.drop_layers,
            int8=self.int8,
            generator=torch.Generator().manual_seed(self.seed),
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
                **_foreseen(context.layer_times if self.needs_layer_times else None, description.body, body),
                "calibration_texts": sum(len(batch.ids) for batch in batches),
                "calibration_tokens": sum(int(batch.mask.sum()) for batch in batches),
                "cosine_by_round": [result.cosine for result in results],
                "predicted_by_round": [result.predicted for result in results],
            },
        )


def flops_costs(body: Body) -> Costs:
    """Multiply-adds a token in the weights of a layer's parts."""
    per_head, per_neuron = 4 * body.hidden * body.head_size, 2 * body.hidden
    return Costs(0.0, lambda heads: float(per_head * heads), lambda width: float(per_neuron * width))


def latency_costs(times: LayerTimes, units: Mapping[int, float]) -> Costs:
    """Milliseconds at each length over that length's unit, added up."""
    return Costs(
        sum(times.fixed[n] / unit for n, unit in units.items()),
        lambda heads: sum(times.attention_ms(heads, n) / unit for n, unit in units.items()),
        lambda width: sum(times.feed_forward_ms(width, n) / unit for n, unit in units.items()),
    )


def _narrowed(body: Body, share: float) -> list[tuple[int, int]]:
    return [(max(1, round(share * heads)), max(1, round(share * width))) for heads, width in body.sizes]


def _foreseen(times: LayerTimes | None, whole: Body, pruned: Body) -> dict[str, JsonValue]:
    """The latency that the layers' times foresee, by length, for the record."""
    if times is None:
        return {}
    return {
        "predicted_ms": {str(n): times.body_ms(pruned.sizes, n) for n in times.lengths},
        "predicted_ratio": {str(n): times.body_ms(pruned.sizes, n) / times.body_ms(whole.sizes, n) for n in times.lengths},
    }
