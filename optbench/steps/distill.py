"""Recover the accuracy lost by making a model smaller: train it towards the recipe's base on unlabeled texts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.machine.extras import require_extra
from optbench.model.checkpoint import Prompts, read_body, read_prompts
from optbench.steps.base import BaseCheckpoint, CalibrationTexts, EvaluationTexts, Input, RecipeFiles, ResumeFolder, StepContext, StepReport
from optbench.steps.training.step import Evaluations, HeldOut, LearningRate, TrainingStep, Warmup
from optbench.steps.training.texts import TextPaths, check_known, check_texts, excerpts, files_of_texts, gather_texts
from optbench.tasks import JudgedTexts

if TYPE_CHECKING:
    from optbench.steps.training.trainer import Trained

__all__ = ["Distill"]

HELD_OUT_MIN, HELD_OUT_MAX = 8, 500
# AdamW's default .999 averages the squared gradient over a thousand steps, half a distillation; .98 averages over fifty.
ADAM_BETA2 = 0.98
# The learning rate is too high where the held-out loss rises above 1.5 of its start and does not fall below 0.75 of it: 2.3 and .89
# in bench/LOG.md, D5. With the right rate, all-MiniLM-L6-v2 at half its multiply-adds reaches 1.3 and .62.
RISE_MAX, RECOVERY_MIN = 1.5, 0.75


class Distill(TrainingStep):
    """Train a checkpoint to give the embeddings of the recipe's base.

    The texts are the recipe's calibration texts, those of `texts`, and excerpts of both; test texts of the tasks are refused.
    Embedding tables are not trained. A part of the texts is held out to choose the best weights. A killed run resumes from its last
    checkpoint.
    """

    version: ClassVar[int] = 6

    step: Literal["distill"] = "distill"
    texts: TextPaths = ()
    max_texts: int = Field(default=200_000, ge=16, description="At most so many texts from each path, a random sample.")
    excerpts: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the texts of which an excerpt of one to four words is added as a substitute for queries.",
    )
    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the texts, if `minutes` allows.")
    # Batches and weights compared: bench/LOG.md, D4.
    batch: int | None = Field(
        default=None, ge=1, le=4096, description="Texts per step; if left out, 64, or fewer where 64 would exceed 2,048 tokens."
    )
    learning_rate: LearningRate | None = Field(
        default=None,
        description="AdamW's peak learning rate; if left out, 8e-4, and for models wider than 384 lower by the square of the width. That "
        "suits a body cut to half and thousands of steps; use a quarter of it after a smaller cut or for few steps.",
    )
    warmup: Warmup = 0.05
    held_out: HeldOut = 0.02
    evaluations: Evaluations = 10
    embedding_weight: float = Field(default=1.0, ge=0, description="Weight of 1 - cosine to the base's embedding.")
    hidden_weight: float = Field(
        default=4.0, ge=0, description="Weight of the distance of all tokens' states after each layer; 0 turns it off."
    )
    relation_weight: float = Field(
        default=0.0, ge=0, description="Weight of the divergence of the last layer's attention relations; 0 turns it off."
    )
    layer_map: tuple[int, ...] | None = Field(
        default=None, description="The base's layer, from 0, that each layer is compared with; evenly spread if left out."
    )

    def inputs(self) -> tuple[Input[Any], ...]:
        """Calibration texts, the base, and the files of `texts`, besides what every training needs."""
        files = (RecipeFiles(self.files, partial(check_texts, self.texts)),) if self.texts else ()
        return (*super().inputs(), CalibrationTexts(), BaseCheckpoint(), *files)

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files of `texts`."""
        return files_of_texts(self.texts, folder)

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Train `source` towards the base."""
        from optbench.machine.worker import peak_rss_bytes
        from optbench.model.torch_model import save_torch_model
        from optbench.steps.training.distillation import (
            LossWeights,
            Teacher,
            default_batch,
            default_learning_rate,
            distillation_loss,
            map_layers,
            teacher_vectors,
        )
        from optbench.steps.training.model import build_trainable, torch_body, use_bf16
        from optbench.steps.training.trainer import Training, train

        require_extra("train", "training")
        base = context.need(BaseCheckpoint)
        body, whole = read_body(source.path), read_body(base.path)
        if body.hidden != whole.hidden:
            raise StepError(f"{source.path}: its embeddings have {body.hidden} dimensions, its base's {whole.hidden}; keep the width")
        layers = map_layers(body.layers, whole.layers, self.layer_map)
        texts, unknown = self._texts(source, context)
        held_out, trained_on = self._split(texts, read_prompts(source.path), context.need(EvaluationTexts))
        texts, count = held_out + trained_on, len(held_out)
        bf16 = use_bf16(self.precision, context.machine)
        folder = context.get(ResumeFolder) or context.scratch

        from datasets import Dataset

        context.progress("loading the models", None)
        teacher, student = build_trainable(base.path, packed=True).eval(), build_trainable(source.path, packed=True)
        learning_rate = self.learning_rate or default_learning_rate(body.hidden)
        tokens = sum(len(row.ids) for row in student[0].tokenizer.encode_batch_fast(texts[count:]))
        batch = self.batch or default_batch(tokens / (len(texts) - count))
        weights = LossWeights(self.embedding_weight, self.hidden_weight, self.relation_weight)
        # Where the teacher runs on every batch for its inner states, only its embeddings of the held-out part are used more than once.
        repeated = texts[:count] if weights.inner else texts
        vectors = teacher_vectors(teacher, repeated, folder / "teacher.npy", batch, bf16, context.progress)
        loss = distillation_loss(student, Teacher(teacher, texts, vectors, layers, bf16), weights)
        training = Training(
            texts=Dataset.from_dict({"text": texts[count:], "label": range(count, len(texts))}),
            held_out=Dataset.from_dict({"text": texts[:count], "label": range(count)}),
            epochs=self.epochs,
            learning_rate=learning_rate,
            batch=batch,
            bf16=bf16,
            arguments={"adam_beta2": ADAM_BETA2},
        )
        trained = train(student, loss, training, self, folder / "checkpoints", context.progress)
        save_torch_model(torch_body(student), source.path, out)
        facts = {
            "texts": len(texts) - count,
            "held_out_texts": count,
            "tokens_an_epoch": tokens,
            "batch": batch,
            "unknown_share": round(unknown, 5),
            "layer_map": list(layers),
            "precision": "bf16" if bf16 else "fp32",
            "learning_rate": learning_rate,
            "peak_rss_bytes": peak_rss_bytes(),
            **trained.facts(),
        }
        return StepReport(matched={"layers": body.layers}, warnings=_warnings(trained, learning_rate), facts=facts)

    def _texts(self, source: Artifact, context: StepContext) -> tuple[list[str], float]:
        """The shuffled texts, and the share of their tokens that the vocabulary lacks."""
        texts = gather_texts(self.texts, source.path, context, self.max_texts, self.seed)
        if len(texts) < 2 * HELD_OUT_MIN:
            raise StepError(
                f"{source.path}: {len(texts)} texts to distill on, expected at least {2 * HELD_OUT_MIN} (a real recovery takes thousands): "
                "name files in texts, or raise calibration.texts in the recipe"
            )
        random.Random(self.seed).shuffle(texts)  # noqa: S311  # an order, not a secret
        return texts, check_known(source.path, texts)

    def _split(self, texts: Sequence[str], prompts: Prompts, judged: JudgedTexts) -> tuple[list[str], list[str]]:
        """The held-out texts and the training texts, each with their excerpts; no text is in both."""
        count = min(max(HELD_OUT_MIN, int(self.held_out * len(texts))), HELD_OUT_MAX)
        held_out, trained_on = (
            [*part, *excerpts(part, prompts, self.excerpts, judged, self.seed)] for part in (texts[:count], texts[count:])
        )
        known = set(held_out)
        return held_out, [text for text in trained_on if text not in known]


def _warnings(trained: Trained, learning_rate: float) -> tuple[str, ...]:
    if trained.best_step == 0:
        return ("no evaluation was better than the source, so its weights were kept; lower learning_rate, or give more texts",)
    before, *after = (held_out for _, _, held_out in trained.losses)
    if max(after) > RISE_MAX * before and min(after) > RECOVERY_MIN * before:
        return (
            f"the held-out loss rose from {before:.4f} to {max(after):.4f} before it fell to {min(after):.4f}: training first destroyed "
            f"what pruning had fitted; try a quarter of learning_rate {learning_rate:g}, or more steps",
        )
    return ()
