"""Fine-tune on labelled pairs: contrastive, then against hard negatives that the model itself finds, as the published models were."""

import contextlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.machine.worker import peak_rss_bytes
from optbench.model.checkpoint import read_body
from optbench.model.torch_model import save_torch_model
from optbench.steps.base import StepContext, StepReport
from optbench.steps.training.fake_quantization import fake_quantized
from optbench.steps.training.model import build_trainable, check_extra, torch_body, use_bf16
from optbench.steps.training.pairs import Pairs, check_no_test_query, pair_files, read_pairs
from optbench.steps.training.step import Evaluations, HeldOut, LearningRate, TrainingStep, Warmup
from optbench.steps.training.texts import check_known
from optbench.steps.training.trainer import Trained, train

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

__all__ = ["Finetune"]

Rows = Mapping[str, Sequence[tuple[str, ...]]]
COLUMNS = ("anchor", "positive", "negative")


class Finetune(TrainingStep):
    """Train a checkpoint on queries and the documents that answer them.

    First each query against the documents of the others in its batch (InfoNCE), then also against hard negatives: documents that
    the model so trained ranks high, yet clearly below the positive, and those that people judged not to answer. Each of the two
    stages is a training of its own: `minutes`, `warmup`, `evaluations` and `patience` count in each anew. A batch comes from one
    data set. Tables stay as they are. A part of the queries is held out and decides which weights are kept. A run that was killed
    goes on from its last checkpoint.

    It is meant to move the embeddings: a recipe with this step needs a `fidelity` that allows it.
    """

    version: ClassVar[int] = 1

    step: Literal["finetune"] = "finetune"
    data: tuple[Path, ...] = Field(
        min_length=1,
        description=(
            "Data sets: BEIR folders, or .jsonl files (perhaps .gz) of anchor, positive and perhaps negative; relative to the recipe."
        ),
    )
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Whose judgments of a BEIR folder train.")
    positive_from: int = Field(default=1, ge=1, description="Lowest grade that answers a query; grade 0 is a hard negative.")
    mixing: Literal["proportional", "round_robin"] = Field(
        default="proportional", description="How often a batch comes from each data set: by its size, or in turn until one is used up."
    )
    epochs: int = Field(default=1, ge=0, le=1000, description="Passes over the pairs; 0 leaves the first stage out.")
    hard_epochs: int = Field(default=1, ge=0, le=1000, description="Passes with hard negatives; 0 leaves the second stage out.")
    batch: int = Field(default=64, ge=2, le=65536, description="Queries a step; each is told apart from the others' documents.")
    mini_batch: int = Field(default=32, ge=1, le=4096, description="Texts that are computed at once; memory, not results, hangs on it.")
    temperature: float = Field(default=0.05, gt=0, le=1, description="Of InfoNCE.")
    learning_rate: LearningRate = 2e-5
    warmup: Warmup = 0.1
    held_out: HeldOut = 0.1
    evaluations: Evaluations = 5
    negatives: int = Field(default=4, ge=1, le=100, description="Hard negatives a pair, of those mined and of those judged.")
    margin: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="A mined document whose cosine is not below the positive's by this share may be an answer: left out.",
    )
    depth: int = Field(default=100, ge=1, le=100_000, description="How far down the ranking hard negatives are looked for.")
    quantization_aware: bool = Field(default=False, description="Round to int8 in the forward pass of the last stage.")

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files of `data`."""
        return {f"{path}: {name}": file for path in self.data for name, file in pair_files(folder / path, self.split).items()}

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Train `source`.

        Raises:
            TaskError: a BEIR folder that is not whole.
            StepError: a data set without positives, a query of the test, texts of a script the model cannot read, no stage, a loss
                that is not a number, or an extra that is not installed.
        """
        check_extra()
        stages = [name for name, epochs in (("pairs", self.epochs), ("hard", self.hard_epochs)) if epochs]
        if not stages:
            raise StepError(f"{source.path}: epochs and hard_epochs are both 0; give one of them")
        sets = [read_pairs(context.folder / path, self.split, self.positive_from) for path in self.data]
        for pairs in sets:
            check_no_test_query(pairs, context.judged)
        unknown = check_known(source.path, [text for pairs in sets for row in pairs.rows for text in row])
        bf16 = use_bf16(self.precision, context.machine)
        parts = [pairs.split(self.held_out, self.seed) for pairs in sets]
        # A data set's number keeps two of one name apart.
        learnt = {f"{index} {part.name}": part for index, (part, _) in enumerate(parts)}
        held_out = [row for _, part in parts for row in part.rows]
        context.progress("loading the model", None)
        model = build_trainable(source.path)
        trained: dict[str, Trained] = {}
        facts: dict[str, Any] = {"trained_pairs": {name: len(part.rows) for name, part in learnt.items()}, "held_out_pairs": len(held_out)}
        for stage in stages:
            rows: Rows = {name: part.rows for name, part in learnt.items()}
            if stage == "hard":
                context.progress("mining hard negatives", None)
                rows = {name: self._with_negatives(model, part) for name, part in learnt.items()}
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
        warnings = [f"stage {name}: no evaluation was better than before it, and what was before it was kept" for name in kept]
        return StepReport(matched={"layers": read_body(out).layers}, warnings=tuple(warnings), facts=facts)

    def _train(
        self, model: "SentenceTransformer", stage: str, rows: Rows, held_out: Sequence[tuple[str, ...]], bf16: bool, context: StepContext
    ) -> Trained:
        from datasets import DatasetDict
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        return train(
            model,
            CachedMultipleNegativesRankingLoss(model, scale=1 / self.temperature, mini_batch_size=self.mini_batch),
            DatasetDict({name: _dataset(triples) for name, triples in rows.items()}),
            _dataset(held_out),
            self,
            self.epochs if stage == "pairs" else self.hard_epochs,
            (context.unfinished or context.scratch) / stage,
            context.progress,
            learning_rate=self.learning_rate,
            batch=self.batch,
            bf16=bf16,
            multi_dataset_batch_sampler=self.mixing,
            prompts=read_prompts_by_column(model),
        )

    def _with_negatives(self, model: "SentenceTransformer", pairs: Pairs) -> list[tuple[str, ...]]:
        """Each pair with up to `negatives` judged negatives, and with up to as many mined ones."""
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


def read_prompts_by_column(model: "SentenceTransformer") -> dict[str, str] | None:
    """What stands before each column's texts; None where nothing does."""
    query, document = model.prompts.get("query") or "", model.prompts.get("document") or ""
    return {"anchor": query, "positive": document, "negative": document} if query or document else None


def _dataset(rows: Sequence[tuple[str, ...]]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=False)})
