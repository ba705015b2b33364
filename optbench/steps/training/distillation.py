"""What a student learns: the teacher's embedding and, optionally, its hidden states and attention relations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optbench.errors import StepError
from optbench.machine.progress import Progress
from optbench.model.torch_model import encoder_layers
from optbench.steps.training.model import torch_body

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

__all__ = ["LossWeights", "Teacher", "default_batch", "default_learning_rate", "distillation_loss", "map_layers", "teacher_vectors"]

BATCH, BATCH_TOKENS = 64, 2048


def default_batch(tokens: float) -> int:
    """Texts per step for a mean number of tokens per text; the memory of a training grows with the tokens per step."""
    return max(1, min(BATCH, int(BATCH_TOKENS / tokens)))


def default_learning_rate(hidden: int) -> float:
    """The peak learning rate for a body of this width, in batches of 64.

    Pruning's refit leaves a good solution, which too high a rate destroys first; a wide body has few steps in a few minutes to recover.
    Extrapolated from all-MiniLM-L6-v2 (384) and all-mpnet-base-v2 (768) at half their multiply-adds: bench/LOG.md, D4 and D5.
    """
    return 8e-4 * min(1.0, 384 / hidden) ** 2


def map_layers(student: int, teacher: int, layer_map: Sequence[int] | None) -> tuple[int, ...]:
    """The teacher's layer that each layer of the student is compared with, from 0.

    Without a `layer_map` from the recipe, they are spread evenly and the last layers are a pair. Refuses a map that does not name, in
    ascending order, one of the teacher's layers for each of the student's.

    Source: Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, section 4 (the uniform mapping).
    """
    if layer_map is None:
        if student > teacher:
            raise StepError(f"the student has {student} layers and its teacher {teacher}; give layer_map to pair them")
        return tuple((layer + 1) * teacher // student - 1 for layer in range(student))
    if len(layer_map) != student or list(layer_map) != sorted(layer_map) or layer_map[-1] >= teacher:
        raise StepError(
            f"layer_map {list(layer_map)}: expected {student} ascending layers from 0 to {teacher - 1}, one for each of the student's"
        )
    return tuple(layer_map)


def teacher_vectors(
    teacher: "SentenceTransformer", texts: Sequence[str], path: Path, batch: int, bf16: bool, progress: Progress
) -> NDArray[np.float32]:
    """The teacher's embeddings, (texts, dimension), float32; read from `path` if an earlier run has saved them there."""
    import torch

    shape = (len(texts), teacher.get_embedding_dimension())
    if path.is_file():
        found: NDArray[np.float32] = np.load(path)
        if found.shape == shape:
            return found
    vectors = np.empty(shape, np.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for start in range(0, len(texts), batch):
            features = teacher.preprocess(texts[start : start + batch])
            vectors[start : start + batch] = teacher(features)["sentence_embedding"].numpy()
            progress("embedding with the teacher", min(1.0, (start + batch) / len(texts)))
    draft = path.with_suffix(".draft.npy")
    np.save(draft, vectors)
    draft.replace(path)
    return vectors


@dataclass(frozen=True)
class Teacher:
    """The model that a student is trained towards.

    Attributes:
        model: a packed one from `build_trainable`. It has its own tokenizer: a student's vocabulary may be trimmed.
        texts: all texts; a label is a place in them.
        vectors: its embeddings of the texts; of the held-out ones only, which come first, where inner states are compared too.
        bf16: compute in bf16. The trainer sets this for the student only.
    """

    model: "SentenceTransformer"
    texts: Sequence[str]
    vectors: NDArray[np.float32]
    layer_map: Sequence[int]
    bf16: bool

    def look_up(self, labels: Any) -> "torch.Tensor":
        """Its stored embeddings of a batch."""
        import torch

        return torch.from_numpy(self.vectors[labels.numpy()])

    def embed(self, labels: Any, places: "torch.Tensor") -> "torch.Tensor":
        """Run it on a batch, so that its inner states can be read; returns its embeddings.

        `places` tells which text each of the student's tokens belongs to; a batch that the teacher tokenizes differently is refused.
        """
        import torch

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            own = self.model.preprocess([self.texts[label] for label in labels.tolist()])
            embedding: torch.Tensor = self.model(own)["sentence_embedding"]
        if not torch.equal(own["texts"], places):
            raise StepError(
                "the student's tokens differ from its base's, so their states cannot be compared: "
                "set hidden_weight and relation_weight to 0"
            )
        return embedding


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of `distillation_loss`."""

    embedding: float
    hidden: float
    relations: float

    @property
    def inner(self) -> bool:
        """Whether inner states are compared."""
        return self.hidden > 0 or self.relations > 0


def distillation_loss(student: "SentenceTransformer", teacher: Teacher, weights: LossWeights) -> "torch.nn.Module":
    """A loss in sentence-transformers' form, over one column of texts whose label is the text's place in `teacher.texts`.

    Its parts, each 0 where the student does what its teacher does:
    embedding: 1 - cosine.
    hidden: after each layer, the squared distance of all tokens' states, divided by the squared norm of the teacher's about their mean.
    relations: in the last layer, the divergence of the softmax of query-query, key-key and value-value products between tokens, as in
        MiniLMv2, but over all heads at once, because a pruned student has fewer.

    Source: Wang et al. 2021, "MiniLMv2", arXiv:2012.15828, section 3.2.
    """
    import torch

    own = _Inside(torch_body(student), range(len(teacher.layer_map)))
    target = _Inside(torch_body(teacher.model), teacher.layer_map)

    def inner_parts(places: Any) -> dict[str, Any]:
        parts = {}
        if weights.hidden > 0:
            parts["hidden"] = weights.hidden * _hidden_distance(own.states, target.states, places > 0)
        if weights.relations > 0:
            parts["relations"] = weights.relations * _relation_distance(own.projections, target.projections, places)
        return parts

    class DistillationLoss(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
        def __init__(self) -> None:
            super().__init__()
            # Not the teacher: the optimizer takes all parameters that a loss holds.
            self.model = student

        def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Any) -> dict[str, Any]:
            (features,) = sentence_features
            given = self.model(features)["sentence_embedding"]
            inner = weights.inner and self.model.training
            expected = teacher.embed(labels, features["texts"]) if inner else teacher.look_up(labels)
            distance = (1 - torch.nn.functional.cosine_similarity(given, expected)).mean()
            if not self.model.training:
                return {"embedding": distance}
            return {"embedding": weights.embedding * distance} | (inner_parts(features["texts"]) if inner else {})

    if weights.inner:
        for each in (own, target):
            each.watch(weights.relations > 0)
    return DistillationLoss()


class _Inside:
    """Records a body's inner values in each forward pass: states after layers, and the last layer's queries, keys and values."""

    def __init__(self, body: Any, layers: Iterable[int]) -> None:
        self.body, self.layers = body, list(layers)
        self.states: list[Any] = [None] * len(self.layers)
        self.projections: list[Any] = [None] * 3

    def watch(self, projections: bool) -> None:
        def keep(store: list[Any], index: int) -> Callable[..., None]:
            def hook(module: Any, arguments: Any, output: Any) -> None:
                store[index] = (output[0] if isinstance(output, tuple) else output).float()

            return hook

        for index, layer in enumerate(self.layers):
            self.body.encoder.layer[layer].register_forward_hook(keep(self.states, index))
        if projections:
            last = encoder_layers(self.body)[self.layers[-1]]
            for index, linear in enumerate((last.query, last.key, last.value)):
                linear.register_forward_hook(keep(self.projections, index))


def _hidden_distance(student: Sequence[Any], teacher: Sequence[Any], mask: Any) -> Any:
    """The mean over layers of |s - t|^2 / |t - mean t|^2 over the tokens, padding excluded."""
    total = 0.0
    for given, expected in zip(student, teacher, strict=True):
        real = expected[mask]
        scale = (real - real.mean(0)).square().sum()
        total = total + (given[mask] - real).square().sum() / scale.clamp(min=1e-9)
    return total / len(student)


def _relation_distance(student: Sequence[Any], teacher: Sequence[Any], texts: Any) -> Any:
    """The mean over queries, keys and values of KL(teacher's relations | student's), per token, within its text."""
    import torch

    apart = texts[:, :, None] != texts[:, None]
    total = 0.0
    for given, expected in zip(student, teacher, strict=True):
        logs = []
        for rows in (given, expected):
            scores = rows @ rows.transpose(1, 2) / rows.shape[-1] ** 0.5
            logs.append(torch.log_softmax(scores.masked_fill(apart, torch.finfo(scores.dtype).min), -1))
        divergence = (logs[1].exp() * (logs[1] - logs[0])).masked_fill(apart, 0.0).sum(-1)
        total = total + divergence[texts > 0].mean()
    return total / len(student)
