"""Recover what making a model smaller has cost: train it towards the recipe's base on texts without labels."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.machine.worker import peak_rss_bytes
from optbench.model.checkpoint import Prompts, read_body, read_prompts
from optbench.model.torch_model import save_torch_model
from optbench.steps.base import StepContext, StepReport
from optbench.steps.training.distillation import default_batch, default_learning_rate, distillation_loss, map_layers, teacher_vectors
from optbench.steps.training.model import build_trainable, check_extra, torch_body, use_bf16
from optbench.steps.training.step import Evaluations, HeldOut, LearningRate, TrainingStep, Warmup
from optbench.steps.training.texts import TextPaths, check_known, excerpts, files_of_texts, gather_texts
from optbench.steps.training.trainer import Trained, train
from optbench.tasks import JudgedTexts

__all__ = ["Distill"]

HELD_OUT_MIN, HELD_OUT_MAX = 8, 500
# AdamW's .999 averages the squared gradient over a thousand steps, which is half a distillation; .98 over fifty.
ADAM_BETA2 = 0.98
# all-MiniLM-L6-v2 at 0.8 of its multiply-adds, 162 steps from a loss of .0200: at 8e-4 .0461 at the worst and .0179 at the end (2.3
# and .89), at 2e-4 .0199 and .0142. At half, 378 steps from .0481 at 1e-3, which was right: .0630 and .0300 (1.3 and .62).
UNDONE, RECOVERED = 1.5, 0.75


class Distill(TrainingStep):
    """Train a checkpoint to give the embeddings of the recipe's base.

    The texts are the recipe's calibration texts, those of `texts`, and excerpts of both; what the tasks ask or judge is refused.
    Tables stay as they are. A part of the texts is held out and decides which weights are kept. A run that was killed goes on from
    its last checkpoint.
    """

    version: ClassVar[int] = 5
    needs_calibration: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    step: Literal["distill"] = "distill"
    texts: TextPaths = ()
    max_texts: int = Field(default=200_000, ge=16, description="At most so many texts of each source, drawn with the seed.")
    excerpts: float = Field(
        default=1.0, ge=0, le=1, description="Share of the texts of which a run of one to four words is added, to stand in for a query."
    )
    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the texts, if the minutes allow.")
    # all-MiniLM-L6-v2 at half its multiply-adds, 100 s on 2 cores with bf16, held-out loss from .0481: some 19 texts a step .0309,
    # 38 .0296, 76 .0282, 153 .0293, each at a rate that suits it; at 76, hidden_weight 1 .0289 and 16 .0288.
    batch: int | None = Field(
        default=None, ge=1, le=4096, description="Texts a step; where left out 64, and fewer where these would have over 2,048 tokens."
    )
    learning_rate: LearningRate | None = Field(
        default=None,
        description="AdamW's, at its highest; where left out 8e-4, and for a model wider than 384 less by the width's square: for half a "
        "body and thousands of steps. Where less was cut or steps are few, a quarter of it.",
    )
    warmup: Warmup = 0.05
    held_out: HeldOut = 0.02
    evaluations: Evaluations = 10
    embedding_weight: float = Field(default=1.0, ge=0, description="Of 1 - cosine to the base's embedding.")
    hidden_weight: float = Field(default=4.0, ge=0, description="Of the distance of all tokens' states after each layer; 0 leaves it out.")
    relation_weight: float = Field(
        default=0.0, ge=0, description="Of the divergence of the last layer's attention relations; 0 leaves it out."
    )
    layer_map: tuple[int, ...] | None = Field(
        default=None, description="The base's layer, from 0, that each layer answers to; spread evenly when left out."
    )

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files of `texts`."""
        return files_of_texts(self.texts, folder)

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Train `source` towards `context.base`.

        Raises:
            TaskError: a file of texts that cannot be read.
            StepError: no texts, texts of the test or of a script the model cannot read, a base of another width, a loss that is not
                a number, or an extra that is not installed.
        """
        check_extra()
        base = context.base
        if base is None:
            raise StepError(f"{source.path}: distill needs the recipe's base to recover towards; run it as a step of a recipe")
        body, whole = read_body(source.path), read_body(base.path)
        if body.hidden != whole.hidden:
            raise StepError(f"{source.path}: embeddings of {body.hidden} numbers cannot follow a base of {whole.hidden}; keep its width")
        layers = map_layers(body.layers, whole.layers, self.layer_map)
        texts, unknown = self._texts(source, context)
        held_out, trained_on = self._split(texts, read_prompts(source.path), context.judged)
        texts, count = held_out + trained_on, len(held_out)
        bf16 = use_bf16(self.precision, context.machine)
        folder = context.unfinished or context.scratch

        from datasets import Dataset

        context.progress("loading the models", None)
        teacher, student = build_trainable(base.path, packed=True).eval(), build_trainable(source.path, packed=True)
        learning_rate = self.learning_rate or default_learning_rate(body.hidden)
        tokens = sum(len(row.ids) for row in student[0].tokenizer.encode_batch_fast(texts[count:]))
        batch = self.batch or default_batch(tokens / (len(texts) - count))
        weights = (self.embedding_weight, self.hidden_weight, self.relation_weight)
        # Where the teacher runs on every batch for its inner states, only the held-out part is asked for more than once.
        repeated = texts[:count] if self.hidden_weight or self.relation_weight else texts
        vectors = teacher_vectors(teacher, repeated, folder / "teacher.npy", batch, bf16, context.progress)
        loss = distillation_loss(student, teacher, texts, vectors, layers, weights, bf16)
        trained = train(
            student,
            loss,
            Dataset.from_dict({"text": texts[count:], "label": range(count, len(texts))}),
            Dataset.from_dict({"text": texts[:count], "label": range(count)}),
            self,
            self.epochs,
            folder / "checkpoints",
            context.progress,
            learning_rate=learning_rate,
            batch=batch,
            bf16=bf16,
            adam_beta2=ADAM_BETA2,
        )
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
        """The texts in the order of the seed, and the share of their tokens that the vocabulary lacks."""
        texts = gather_texts(self.texts, source.path, context, self.max_texts, self.seed)
        if len(texts) < 2 * HELD_OUT_MIN:
            raise StepError(
                f"{source.path}: {len(texts)} texts to distill on, at least {2 * HELD_OUT_MIN} are wanted (thousands recover something): "
                "name files in texts, or raise calibration.texts in the recipe"
            )
        random.Random(self.seed).shuffle(texts)  # noqa: S311  # an order, not a secret
        return texts, check_known(source.path, texts)

    def _split(self, texts: Sequence[str], prompts: Prompts, judged: JudgedTexts) -> tuple[list[str], list[str]]:
        """The texts that are held out and those that are trained on, each part with its excerpts and no text in both."""
        count = min(max(HELD_OUT_MIN, int(self.held_out * len(texts))), HELD_OUT_MAX)
        held_out, trained_on = (
            [*part, *excerpts(part, prompts, self.excerpts, judged, self.seed)] for part in (texts[:count], texts[count:])
        )
        known = set(held_out)
        return held_out, [text for text in trained_on if text not in known]


def _warnings(trained: Trained, learning_rate: float) -> tuple[str, ...]:
    if trained.best_step == 0:
        return ("no evaluation was better than the source, whose weights were kept; lower learning_rate, or give more texts",)
    before, *after = (held_out for _, _, held_out in trained.losses)
    if max(after) > UNDONE * before and min(after) > RECOVERED * before:
        return (
            f"the held-out loss rose from {before:.4f} to {max(after):.4f} before it fell to {min(after):.4f}: training undid first what "
            f"pruning had fitted; try a quarter of learning_rate {learning_rate:g}, or more steps",
        )
    return ()
