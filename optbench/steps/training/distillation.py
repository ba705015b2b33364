"""What a student is taught: to give the teacher's embedding, and, where asked, its hidden states and its attention relations."""

from collections.abc import Callable, Iterable, Sequence
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

__all__ = ["default_batch", "default_learning_rate", "distillation_loss", "map_layers", "teacher_vectors"]

BATCH, BATCH_TOKENS = 64, 2048


def default_batch(tokens: float) -> int:
    """Texts a step where a text has so many tokens in the mean; what a training holds in memory grows with the tokens of a step."""
    return max(1, min(BATCH, int(BATCH_TOKENS / tokens)))


def default_learning_rate(hidden: int) -> float:
    """The highest learning rate for a body of this width, in batches of 64.

    Pruning's refit leaves a good solution, which too high a rate undoes first, and a wide body takes few steps in some minutes to come
    back. all-MiniLM-L6-v2 (384) at half its multiply-adds, held-out loss after 100 s: .0289 at 6e-4, .0282 at 1e-3, .0299 at 2e-3.
    all-mpnet-base-v2 (768) at half, after 120 s: .0531 at 1.5e-4, .0547 at 2.5e-4. Beyond these two it is extrapolated.
    """
    return 8e-4 * min(1.0, 384 / hidden) ** 2


def map_layers(student: int, teacher: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The teacher's layer that each layer of the student answers to, from 0.

    Args:
        student: its layers.
        teacher: its layers.
        wanted: as the recipe gives it; spread evenly with the last at the last where left out, as TinyBERT does.

    Raises:
        StepError: not one ascending layer of the teacher for each of the student's, or a student deeper than its teacher.

    Source: Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, section 4 (the uniform mapping).
    """
    if wanted is None:
        if student > teacher:
            raise StepError(f"the student has {student} layers and its teacher {teacher}; give layer_map to say which answers to which")
        return tuple((layer + 1) * teacher // student - 1 for layer in range(student))
    if len(wanted) != student or list(wanted) != sorted(wanted) or wanted[-1] >= teacher:
        raise StepError(
            f"layer_map {list(wanted)}: {student} ascending layers from 0 to {teacher - 1} are wanted, one for each of the student's"
        )
    return tuple(wanted)


def teacher_vectors(
    teacher: "SentenceTransformer", texts: Sequence[str], path: Path, batch: int, bf16: bool, progress: Progress
) -> NDArray[np.float32]:
    """The teacher's embeddings, (texts, dimension), float32; read from `path` where an earlier run has left them there."""
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


def distillation_loss(
    student: "SentenceTransformer",
    teacher: "SentenceTransformer",
    texts: Sequence[str],
    vectors: NDArray[np.float32],
    layer_map: Sequence[int],
    weights: tuple[float, float, float],
    bf16: bool,
) -> "torch.nn.Module":
    """A loss in sentence-transformers' form, over one column of texts whose label is the text's place in `texts`.

    Its parts, each 0 where the student does what its teacher does:
    embedding: 1 - cosine.
    hidden: after each layer, the squared distance of all tokens' states over the teacher's squared norm about its mean.
    relations: in the last layer, the divergence of the softmax of query-query, key-key and value-value products between tokens,
        MiniLMv2's, over all heads at once, because a pruned student has fewer.

    Args:
        student: is trained; like its teacher a packed one of `build_trainable`.
        teacher: is not trained. It reads the texts with its own tokenizer: a student's vocabulary may be trimmed.
        texts: what the labels count.
        vectors: the teacher's embeddings of the texts; with hidden states or relations of those that are held out, which come first.
        layer_map: of `map_layers`.
        weights: of the embedding, hidden and relation parts.
        bf16: have the teacher compute in bf16. The trainer says it of its model alone.

    Source: Wang et al. 2021, "MiniLMv2", arXiv:2012.15828, section 3.2.
    """
    import torch

    embedding_weight, hidden_weight, relation_weight = weights
    inside = hidden_weight > 0 or relation_weight > 0
    watched = _Inside(torch_body(student), range(len(layer_map))), _Inside(torch_body(teacher), layer_map)

    class DistillationLoss(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
        def __init__(self) -> None:
            super().__init__()
            self.model = student
            # Out of the modules' sight: the optimizer takes whatever parameters a loss holds.
            self.teacher = [teacher]

        def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Any) -> dict[str, Any]:
            (features,) = sentence_features
            given = self.model(features)["sentence_embedding"]
            judging = not self.model.training
            if judging or not inside:
                wanted = torch.from_numpy(vectors[labels.numpy()])
            else:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    own = self.teacher[0].preprocess([texts[label] for label in labels.tolist()])
                    wanted = self.teacher[0](own)["sentence_embedding"]
                if not torch.equal(own["texts"], features["texts"]):
                    raise StepError(
                        "the student cuts the texts into other tokens than its base, so their states cannot be compared: set "
                        "hidden_weight and relation_weight to 0"
                    )
            distance = (1 - torch.nn.functional.cosine_similarity(given, wanted)).mean()
            if judging:
                return {"embedding": distance}
            parts = {"embedding": embedding_weight * distance}
            if not inside:
                return parts
            numbers = features["texts"]
            if hidden_weight > 0:
                parts["hidden"] = hidden_weight * _hidden_distance(watched[0].states, watched[1].states, numbers > 0)
            if relation_weight > 0:
                parts["relations"] = relation_weight * _relation_distance(watched[0].projections, watched[1].projections, numbers)
            return parts

    if inside:
        for each in watched:
            each.watch(relation_weight > 0)
    return DistillationLoss()


class _Inside:
    """What a forward pass leaves inside a body: states after layers, and the last layer's queries, keys and values."""

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
    """The mean over layers of |s - t|^2 / |t - mean t|^2 over the tokens that are no padding."""
    total = 0.0
    for given, wanted in zip(student, teacher, strict=True):
        real = wanted[mask]
        scale = (real - real.mean(0)).square().sum()
        total = total + (given[mask] - real).square().sum() / scale.clamp(min=1e-9)
    return total / len(student)


def _relation_distance(student: Sequence[Any], teacher: Sequence[Any], texts: Any) -> Any:
    """The mean over queries, keys and values of KL(teacher's relations | student's), per token that is of a text, within the text."""
    import torch

    apart = texts[:, :, None] != texts[:, None]
    total = 0.0
    for given, wanted in zip(student, teacher, strict=True):
        logs = []
        for rows in (given, wanted):
            scores = rows @ rows.transpose(1, 2) / rows.shape[-1] ** 0.5
            logs.append(torch.log_softmax(scores.masked_fill(apart, torch.finfo(scores.dtype).min), -1))
        divergence = (logs[1].exp() * (logs[1] - logs[0])).masked_fill(apart, 0.0).sum(-1)
        total = total + divergence[texts > 0].mean()
    return total / len(student)
