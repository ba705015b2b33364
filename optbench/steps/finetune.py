"""Fine-tune on labeled pairs: contrastive, then with hard negatives mined by the model itself, as published models were trained."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.machine.extras import require_extra
from optbench.model.checkpoint import read_body
from optbench.steps.base import EvaluationTexts, Input, RecipeFiles, ResumeFolder, StepContext, StepReport
from optbench.steps.training.pairs import Pairs, check_no_test_query, pair_files, read_pairs
from optbench.steps.training.step import Evaluations, HeldOut, LearningRate, TrainingStep, Warmup
from optbench.steps.training.texts import check_known

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from optbench.steps.training.trainer import Trained

__all__ = ["Finetune"]

Rows = Mapping[str, Sequence[tuple[str, ...]]]
COLUMNS = ("anchor", "positive", "negative")


class Finetune(TrainingStep):
    """Train a checkpoint on queries and the documents that answer them.

    The first stage contrasts each query with the documents of the others in its batch (InfoNCE); the second adds hard negatives:
    documents that the first stage's model ranks high but clearly below the positive, and those that were judged not to answer.
    Each stage is a training of its own: `minutes`, `warmup`, `evaluations` and `patience` apply to each. A batch comes from one
    data set. Embedding tables are not trained. A part of the queries is held out to choose the best weights. A killed run resumes
    from its last checkpoint.

    Embeddings move on purpose: a recipe with this step needs a `fidelity` that allows it.
    """

    version: ClassVar[int] = 2

    step: Literal["finetune"] = "finetune"
    data: tuple[Path, ...] = Field(
        min_length=1,
        description=(
            "Data sets: BEIR folders, or .jsonl[.gz] files of anchor, positive and optionally negative; paths relative to the recipe."
        ),
    )
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The judgments of a BEIR folder to train on.")
    positive_from: int = Field(default=1, ge=1, description="Lowest grade of a positive; grade 0 is a hard negative.")
    mixing: Literal["proportional", "round_robin"] = Field(
        default="proportional",
        description="How batches are drawn from the data sets: in proportion to size, or in turn until one is used up.",
    )
    epochs: int = Field(default=1, ge=0, le=1000, description="Passes over the pairs; 0 skips the first stage.")
    hard_epochs: int = Field(default=1, ge=0, le=1000, description="Passes with hard negatives; 0 skips the second stage.")
    batch: int = Field(default=64, ge=2, le=65536, description="Queries per step; each is contrasted with the documents of the others.")
    mini_batch: int = Field(default=32, ge=1, le=4096, description="Texts computed at once; affects memory, not results.")
    temperature: float = Field(default=0.05, gt=0, le=1, description="Temperature of InfoNCE.")
    learning_rate: LearningRate = 2e-5
    warmup: Warmup = 0.1
    held_out: HeldOut = 0.1
    evaluations: Evaluations = 5
    negatives: int = Field(
        default=4, ge=1, le=100, description="Hard negatives per pair: at most so many mined ones and so many judged ones."
    )
    margin: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="A mined document is skipped as a possible answer unless its cosine is below the positive's by this share.",
    )
    depth: int = Field(default=100, ge=1, le=100_000, description="How far down the ranking hard negatives are searched.")
    quantization_aware: bool = Field(default=False, description="Round to int8 in the forward pass of the last stage.")

    def inputs(self) -> tuple[Input[Any], ...]:
        """The files of `data`, besides what every training needs."""
        return (*super().inputs(), RecipeFiles(self.files, self.check_data))

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files of `data`."""
        return {f"{path}: {name}": file for path in self.data for name, file in pair_files(folder / path, self.split).items()}

    def check_data(self, folder: Path) -> None:
        """Read `data` once; raises TaskError or StepError where it cannot be trained on."""
        for path in self.data:
            read_pairs(folder / path, self.split, self.positive_from)

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Train `source`, in one stage or two."""
        from optbench.machine.worker import peak_rss_bytes
        from optbench.model.torch_model import save_torch_model
        from optbench.steps.training.fake_quantization import fake_quantized
        from optbench.steps.training.model import build_trainable, torch_body, use_bf16

        require_extra("train", "training")
        stages = [name for name, epochs in (("pairs", self.epochs), ("hard", self.hard_epochs)) if epochs]
        if not stages:
            raise StepError(f"{source.path}: epochs and hard_epochs are both 0; give one of them")
        sets = [read_pairs(context.need(RecipeFiles) / path, self.split, self.positive_from) for path in self.data]
        for pairs in sets:
            check_no_test_query(pairs, context.need(EvaluationTexts))
        unknown = check_known(source.path, [text for pairs in sets for row in pairs.rows for text in row])
        bf16 = use_bf16(self.precision, context.machine)
        parts = [pairs.split(self.held_out, self.seed) for pairs in sets]
        # Two data sets may have the same name.
        training = {f"{index} {part.name}": part for index, (part, _) in enumerate(parts)}
        held_out = [row for _, part in parts for row in part.rows]
        context.progress("loading the model", None)
        model = build_trainable(source.path)
        trained: dict[str, Trained] = {}
        facts: dict[str, Any] = {
            "trained_pairs": {name: len(part.rows) for name, part in training.items()},
            "held_out_pairs": len(held_out),
        }
        for stage in stages:
            rows: Rows = {name: part.rows for name, part in training.items()}
            if stage == "hard":
                context.progress("mining hard negatives", None)
                rows = {name: self._with_negatives(model, part) for name, part in training.items()}
                facts["triples"] = {name: len(triples) for name, triples in rows.items()}
            rounding = fake_quantized(torch_body(model)) if self.quantization_aware and stage == stages[-1] else contextlib.nullcontext()
            with rounding as layers:
                trained[stage] = self._train(model, stage, rows, held_out, bf16, context)
            if layers is not None:
                facts["fake_quantized_layers"] = layers
        save_torch_model(torch_body(model), source.path, out)
        facts |= {name: stage.facts() for name, stage in trained.items()}
        facts |= {"unknown_share": round(unknown, 5), "precision": "bf16" if bf16 else "fp32", "peak_rss_bytes": peak_rss_bytes()}
        kept = [name for name, stage in trained.items() if stage.best_step == 0]
        warnings = [f"stage {name}: no evaluation was better than before it, so the weights from before it were kept" for name in kept]
        return StepReport(matched={"layers": read_body(out).layers}, warnings=tuple(warnings), facts=facts)

    def _train(
        self, model: SentenceTransformer, stage: str, rows: Rows, held_out: Sequence[tuple[str, ...]], bf16: bool, context: StepContext
    ) -> Trained:
        from datasets import DatasetDict
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        from optbench.steps.training.trainer import Training, train

        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / self.temperature, mini_batch_size=self.mini_batch)
        training = Training(
            texts=DatasetDict({name: _dataset(triples) for name, triples in rows.items()}),
            held_out=_dataset(held_out),
            epochs=self.epochs if stage == "pairs" else self.hard_epochs,
            learning_rate=self.learning_rate,
            batch=self.batch,
            bf16=bf16,
            arguments={"multi_dataset_batch_sampler": self.mixing, "prompts": read_prompts_by_column(model)},
        )
        folder = (context.get(ResumeFolder) or context.scratch) / stage
        return train(model, loss, training, self, folder, context.progress)

    def _with_negatives(self, model: SentenceTransformer, pairs: Pairs) -> list[tuple[str, ...]]:
        """Each pair with up to `negatives` judged negatives and as many mined ones."""
        from sentence_transformers.util import mine_hard_negatives

        generator = random.Random(self.seed)  # noqa: S311  # a draw, not a secret
        judged = []
        for anchor, positive in pairs.rows:
            found = pairs.negatives.get(anchor, ())
            judged += [(anchor, positive, negative) for negative in generator.sample(found, min(len(found), self.negatives))]
        mined = mine_hard_negatives(
            _dataset(pairs.rows),
            model.eval(),
            corpus=list(pairs.documents),
            relative_margin=self.margin,
            num_negatives=self.negatives,
            range_max=max(self.depth, self.negatives),
            sampling_strategy="top",
            output_format="triplet",
            batch_size=self.mini_batch,
            verbose=False,
        )
        return [*judged, *((row["anchor"], row["positive"], row["negative"]) for row in mined)] or list(pairs.rows)


def read_prompts_by_column(model: SentenceTransformer) -> dict[str, str] | None:
    """The prompt before each column's texts; None where there is none."""
    query, document = model.prompts.get("query") or "", model.prompts.get("document") or ""
    return {"anchor": query, "positive": document, "negative": document} if query or document else None


def _dataset(rows: Sequence[tuple[str, ...]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=False)})
