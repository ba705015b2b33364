"""A body made smaller in rounds: score what each layer can lose, share out the budget, remove, and refit what stays.

A round looks at the model as the rounds before left it, and every refit aims at what the whole model computes: a layer's linear
parts are fitted, in the order that a text meets them, to give the whole layer's output on the inputs that they now have. What an
earlier layer got wrong is so made good by the next one, as far as it can be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.errors import StepError
from optbench.machine.progress import Progress
from optbench.model.torch_model import encoder_layers, resize_layer
from optbench.steps.pruning.allocation import Choice, LayerOptions, Part, allocate
from optbench.steps.pruning.refit import Normal
from optbench.steps.pruning.removal import RemovalCurve, order_removals
from optbench.steps.pruning.rounding import foresee_rounding
from optbench.steps.pruning.states import Batch, embed, layer_context, layer_states, run_block, start

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    # For each batch and layer the weight of each token at the attention's and at the feed-forward's sum.
    _TokenWeights = list[list[tuple[torch.Tensor, torch.Tensor]]]

__all__ = ["Costs", "Pruner", "RoundResult"]

# Texts on which the loss of a whole layer is tried; each layer takes a run of half the body over them.
DROP_TEXTS = 24


@dataclass(frozen=True)
class Costs:
    """What a body costs, in any unit that adds up over layers.

    Attributes:
        fixed: what no pruning saves.
        attention: of a layer with so many heads.
        feed_forward: of a layer so wide.
    """

    fixed: float
    attention: Callable[[int], float]
    feed_forward: Callable[[int], float]

    def total(self, sizes: Sequence[tuple[int, int]]) -> float:
        """The cost of a body of layers with these heads and widths."""
        return self.fixed + sum(self.attention(heads) + self.feed_forward(width) for heads, width in sizes)


@dataclass(frozen=True)
class RoundResult:
    """What a round left.

    Attributes:
        sizes: heads and feed-forward width of each layer that is left.
        dropped: numbers, in the whole model, of layers that this round dropped.
        predicted: the squared distance of unit embeddings that the scores foresaw of this round's removals, less what later layers
            are taken to make good (`Pruner.lasting`).
        cosine: to the whole model, mean over the calibration texts, measured afterwards.
    """

    sizes: tuple[tuple[int, int], ...]
    dropped: tuple[int, ...]
    predicted: float
    cosine: float


class _Inputs:
    """What is known of the inputs of a linear layer; fed batch by batch.

    Attributes:
        maxima: (in,), the largest magnitude of each.
    """

    def __init__(self, width: int) -> None:
        import torch

        self._sums = torch.zeros(width, width)
        self._tokens = 0
        self.maxima = torch.zeros(width)

    def add(self, inputs: "torch.Tensor", weights: "torch.Tensor") -> None:
        """Take in tokens: (tokens, in), and their weights (tokens,)."""
        self._sums.addmm_(inputs.T, inputs * weights[:, None])
        self._tokens += len(inputs)
        self.maxima = self.maxima.maximum(inputs.abs().amax(0))

    def moments(self) -> "torch.Tensor":
        """E[x x'], (in, in), tokens weighted."""
        return self._sums / self._tokens


@dataclass
class Pruner:
    """The state of a pruning run.

    Attributes:
        whole: the model as it was; not changed.
        model: the same model, made smaller round by round.
        batches: the calibration texts.
        pooling: `mean` or `cls`.
        costs: what sizes cost.
        round_to: heads times head size, and feed-forward widths, are multiples of it.
        damping: of the moments that units are scored by, a share of the mean second moment.
        refit_damping: the same of the refits.
        lasting: share of what the first layer loses that the layers behind it do not make good; at the last layer all of it lasts, and
            between them it grows by the same factor from layer to layer.
        probes: random directions of the embedding a text, whose gradients weigh errors.
        drop_layers: whether whole layers may go.
        int8: whether the model will run in static int8, so that a unit takes the error of its rounding along.
        generator: draws the probes.
        where: for errors.
        progress: called with a phrase and the share done.
    """

    whole: "PreTrainedModel"
    model: "PreTrainedModel"
    batches: Sequence[Batch]
    pooling: str
    costs: Costs
    round_to: int
    damping: float
    refit_damping: float
    lasting: float
    probes: int
    drop_layers: bool
    int8: bool
    generator: "torch.Generator"
    where: str
    progress: Progress

    def __post_init__(self) -> None:
        # Which layer of the whole model each layer of the smaller one comes from.
        self.origins = list(range(len(self.whole.encoder.layer)))
        # And which of its heads and neurons each one still has.
        self.heads = [list(range(layer.heads)) for layer in encoder_layers(self.whole)]
        self.neurons = [list(range(layer.feed_forward)) for layer in encoder_layers(self.whole)]
        self._wanted = [self._finish(self.whole, start(self.whole, batch), batch, 0) for batch in self.batches]
        if not all(bool(vectors.isfinite().all()) for vectors in self._wanted):
            raise StepError(f"{self.where}: the whole model's embeddings are not finite; its weights hold a NaN: fetch the model anew")

    def run_round(self, budget: float, share: tuple[float, float]) -> RoundResult:
        """Prune to `budget`, in the unit of `costs`; `share` is where in the whole work it begins and ends.

        Raises:
            StepError: the budget is below what the smallest sizes cost, or activations are not finite.
        """
        begin, span = share[0], share[1] - share[0]
        self.progress("probing the embedding", begin)
        sensitivity, weights = self._probe()
        options, curves, layers = [], [], encoder_layers(self.model)
        drops = self._drop_errors() if self.drop_layers else [float("inf")] * len(self.origins)
        lasting = (self.lasting ** np.linspace(0, 1, len(self.origins))[::-1]).tolist()
        for index, (inputs, layer) in enumerate(self._walk_inputs(weights)):
            self.progress(f"scoring layer {index}", begin + span * (0.3 + 0.3 * index / len(self.origins)))
            attention, feed_forward = self._curves(layer, inputs, sensitivity[index], index)
            curves.append((attention, feed_forward))
            heads = [layer.heads - step * attention.step for step in range(len(attention.errors))]
            widths = [layer.feed_forward - step * feed_forward.step for step in range(len(feed_forward.errors))]
            options.append(
                LayerOptions(
                    Part(tuple(self.costs.attention(size) for size in heads), _scaled(attention.errors, lasting[index])),
                    Part(tuple(self.costs.feed_forward(size) for size in widths), _scaled(feed_forward.errors, lasting[index])),
                    drops[index] * lasting[index],
                )
            )
        choices = allocate(options, budget - self.costs.fixed)
        if choices is None or not any(choices):
            least = self.costs.total([(max(1, self.round_to // layer.attention.attention_head_size), self.round_to) for layer in layers])
            raise StepError(
                f"{self.where}: a budget of {budget:.4g} is out of reach: the least that can stay costs {least:.4g}; ask for more"
            )
        predicted = sum(_error(option, choice) for option, choice in zip(options, choices, strict=True))
        dropped = self._remove(choices, curves)
        outputs = self._refit(weights, choices, begin + 0.6 * span, 0.4 * span)
        sizes = tuple((layer.heads, layer.feed_forward) for layer in encoder_layers(self.model))
        return RoundResult(sizes, dropped, predicted, self._cosine(outputs))

    def _cosine(self, outputs: "Sequence[torch.Tensor]") -> float:
        """Mean cosine to the whole model over the calibration texts, from what the last layer gives for each batch."""
        import torch

        vectors = [embed(*each, self.pooling) for each in zip(outputs, self.batches, strict=True)]
        return float((torch.cat(vectors) * torch.cat(self._wanted)).sum(1).mean())

    def _finish(self, model: "PreTrainedModel", hidden: "torch.Tensor", batch: Batch, first: int) -> "torch.Tensor":
        """The embeddings of what layer `first` reads."""
        for block in list(model.encoder.layer)[first:]:
            hidden = run_block(model, block, hidden, batch)
        return embed(hidden, batch, self.pooling)

    def _drop_errors(self) -> list[float]:
        """The squared distance that unit embeddings move by when a layer is left out and nothing makes up for it."""
        import torch

        chosen: list[Batch] = []
        for index in np.random.default_rng(0).permutation(len(self.batches)):
            if sum(len(batch.ids) for batch in chosen) < DROP_TEXTS:
                chosen.append(self.batches[index])
        hiddens = [start(self.model, batch) for batch in chosen]
        wanted = [self._finish(self.model, hidden, batch, 0) for hidden, batch in zip(hiddens, chosen, strict=True)]
        errors = []
        for index, block in enumerate(self.model.encoder.layer):
            self.progress(f"trying the body without layer {self.origins[index]}", None)
            without = [self._finish(self.model, hidden, batch, index + 1) for hidden, batch in zip(hiddens, chosen, strict=True)]
            errors.append(float((torch.cat(without) - torch.cat(wanted)).square().sum(1).mean()))
            hiddens = [run_block(self.model, block, hidden, batch) for hidden, batch in zip(hiddens, chosen, strict=True)]
        return errors

    def _probe(self) -> "tuple[list[tuple[torch.Tensor, torch.Tensor]], _TokenWeights]":
        """Gradients of random directions of the embedding at both sums of each layer.

        Returns:
            For each layer E[g g'] at the attention's and the feed-forward's output, a text's tokens summed and texts averaged; and for
            each batch and layer the weight of each token at both, its squared gradient over the mean.
        """
        import torch

        hidden_size = self.model.config.hidden_size
        layers = encoder_layers(self.model)
        sums = [(torch.zeros(hidden_size, hidden_size), torch.zeros(hidden_size, hidden_size)) for _ in layers]
        weights: _TokenWeights = []
        texts = sum(len(batch.ids) for batch in self.batches)
        for batch in self.batches:
            outputs: list[torch.Tensor] = []
            handles = [
                linear.register_forward_hook(lambda _, __, output, kept=outputs: kept.append(output))
                for layer in layers
                for linear in (layer.projection, layer.down)
            ]
            try:
                with torch.enable_grad():
                    hidden = start(self.model, batch).detach().requires_grad_()
                    for block in self.model.encoder.layer:
                        hidden = run_block(self.model, block, hidden, batch)
                    embedding = embed(hidden, batch, self.pooling)
                    norms = [torch.zeros(int(batch.mask.sum())) for _ in outputs]
                    for probe in range(self.probes):
                        direction = torch.randn(embedding.shape, generator=self.generator)
                        gradients = torch.autograd.grad((embedding * direction).sum(), outputs, retain_graph=probe + 1 < self.probes)
                        for place, gradient in enumerate(gradients):
                            rows = gradient[batch.mask]
                            sums[place // 2][place % 2].addmm_(rows.T, rows, alpha=1 / (texts * self.probes))
                            norms[place] += rows.square().sum(1) / self.probes
            finally:
                for handle in handles:
                    handle.remove()
            weights.append([(norms[2 * i], norms[2 * i + 1]) for i in range(len(layers))])
        for index in range(len(layers)):
            for side in range(2):
                mean = torch.cat([batch[index][side] for batch in weights]).mean()
                for batch_weights in weights:
                    batch_weights[index][side].div_(mean)
        return sums, weights

    def _walk_inputs(self, weights: Any) -> Any:
        """For each layer what its projection and its down projection read, and the layer."""
        hiddens = [start(self.model, batch) for batch in self.batches]
        for index, layer in enumerate(encoder_layers(self.model)):
            context, active = _Inputs(layer.projection.in_features), _Inputs(layer.feed_forward)
            for number, batch in enumerate(self.batches):
                states = layer_states(self.model, index, hiddens[number], batch)
                first, second = weights[number][index]
                context.add(states.context, first)
                active.add(states.active, second)
                hiddens[number] = _spread(layer.output_norm(states.targets.output_sum), batch)
            yield (context, active), layer

    def _curves(self, layer: Any, inputs: "tuple[_Inputs, _Inputs]", sensitivity: Any, index: int) -> tuple[RemovalCurve, RemovalCurve]:
        size = layer.attention.attention_head_size
        where = f"{self.where}: layer {self.origins[index]}"
        attention = self._curve(
            layer.projection.weight, inputs[0], sensitivity[0], size, max(1, self.round_to // size), f"{where} attention"
        )
        feed_forward = self._curve(layer.down.weight, inputs[1], sensitivity[1], 1, self.round_to, f"{where} feed-forward")
        return attention, feed_forward

    def _curve(self, weight: Any, inputs: "_Inputs", sensitivity: Any, unit: int, step: int, where: str) -> RemovalCurve:
        moments = inputs.moments()
        rounding = foresee_rounding(weight, inputs.maxima, moments, sensitivity) if self.int8 else None
        return order_removals(weight, moments, sensitivity, unit=unit, step=step, damping=self.damping, where=where, rounding=rounding)

    def _remove(self, choices: Sequence[Choice], curves: Sequence[tuple[RemovalCurve, RemovalCurve]]) -> tuple[int, ...]:
        import torch

        layers = encoder_layers(self.model)
        for origin, layer, choice, (attention, feed_forward) in zip(self.origins, layers, choices, curves, strict=True):
            if choice is not None:
                heads, neurons = attention.kept(choice[0], layer.heads), feed_forward.kept(choice[1], layer.feed_forward)
                resize_layer(layer, heads, neurons)
                self.heads[origin] = [self.heads[origin][head] for head in heads]
                self.neurons[origin] = [self.neurons[origin][neuron] for neuron in neurons]
        dropped = tuple(origin for origin, choice in zip(self.origins, choices, strict=True) if choice is None)
        kept = [index for index, choice in enumerate(choices) if choice is not None]
        self.model.encoder.layer = torch.nn.ModuleList([self.model.encoder.layer[index] for index in kept])
        self.model.config.num_hidden_layers = len(kept)
        self.origins = [self.origins[index] for index in kept]
        return dropped

    def _refit(self, weights: "_TokenWeights", choices: Sequence[Choice], begin: float, span: float) -> "list[torch.Tensor]":
        """Fit the linear parts of each layer in turn; the whole model runs beside it, one layer at a time.

        Returns:
            What the last layer now gives for each batch.
        """
        kept = [index for index, choice in enumerate(choices) if choice is not None]
        wholes, smalls = ([start(model, batch) for batch in self.batches] for model in (self.whole, self.model))
        at = 0
        for place, origin in enumerate(self.origins):
            self.progress(f"refitting layer {origin}", begin + span * place / len(self.origins))
            # The whole model goes on through layers that the smaller one has lost.
            while at < origin:
                block = self.whole.encoder.layer[at]
                wholes = [run_block(self.whole, block, *each) for each in zip(wholes, self.batches, strict=True)]
                at += 1
            # Roots: the weights themselves leave most of the fit to the few tokens of short texts.
            token_weights = [(first.sqrt(), second.sqrt()) for first, second in (batch_weights[kept[place]] for batch_weights in weights)]
            wholes, smalls = self._refit_layer(place, origin, wholes, smalls, token_weights)
            at += 1
        return smalls

    def _refit_layer(
        self,
        place: int,
        origin: int,
        wholes: "list[torch.Tensor]",
        smalls: "list[torch.Tensor]",
        weights: "Sequence[tuple[torch.Tensor, torch.Tensor]]",
    ) -> "tuple[list[torch.Tensor], list[torch.Tensor]]":
        """Fit one layer, and return what both models give the next one to read.

        Each part is fitted to what the whole model computes in its place: query, key, value and up projection to its values, and the
        two that add to the stream to its sums, less the stream that the smaller model has.
        """
        import torch

        where = f"{self.where}: layer {origin}"
        layer = encoder_layers(self.model)[place]
        model_layer = encoder_layers(self.whole)[origin]
        targets = [layer_states(self.whole, origin, *each).targets for each in zip(wholes, self.batches, strict=True)]
        size = layer.attention.attention_head_size
        rows = (torch.tensor(self.heads[origin])[:, None] * size + torch.arange(size)).flatten()
        residuals = [hidden[batch.mask] for hidden, batch in zip(smalls, self.batches, strict=True)]

        projections = Normal(layer.query.in_features, 3 * len(rows))
        for whole, batch, residual, (first, _) in zip(wholes, self.batches, residuals, weights, strict=True):
            seen = whole[batch.mask]
            wanted = [linear(seen)[:, rows] for linear in (model_layer.query, model_layer.key, model_layer.value)]
            projections.add(residual, torch.cat(wanted, dim=1), first)
        projections.solve_into((layer.query, layer.key, layer.value), self.refit_damping, f"{where} projections")

        contexts = [layer_context(self.model, place, *each) for each in zip(smalls, self.batches, strict=True)]
        attention = Normal(layer.projection.in_features, layer.projection.out_features)
        for context, residual, target, (first, _) in zip(contexts, residuals, targets, weights, strict=True):
            attention.add(context, target.attention_sum - residual, first)
        attention.solve_into((layer.projection,), self.refit_damping, f"{where} attention")

        middles = [
            layer.attention_norm(layer.projection(context) + residual) for context, residual in zip(contexts, residuals, strict=True)
        ]
        up = Normal(layer.up.in_features, layer.up.out_features)
        for middle, target, (_, second) in zip(middles, targets, weights, strict=True):
            up.add(middle, model_layer.up(target.middle)[:, self.neurons[origin]], second)
        up.solve_into((layer.up,), self.refit_damping, f"{where} up projection")

        actives = [self.model.encoder.layer[place].intermediate(middle) for middle in middles]
        down = Normal(layer.down.in_features, layer.down.out_features)
        for active, middle, target, (_, second) in zip(actives, middles, targets, weights, strict=True):
            down.add(active, target.output_sum - middle, second)
        down.solve_into((layer.down,), self.refit_damping, f"{where} down projection")

        wholes = [_spread(model_layer.output_norm(target.output_sum), batch) for target, batch in zip(targets, self.batches, strict=True)]
        sums = [layer.down(active) + middle for active, middle in zip(actives, middles, strict=True)]
        return wholes, [_spread(layer.output_norm(each), batch) for each, batch in zip(sums, self.batches, strict=True)]


def _scaled(errors: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(error * factor for error in errors)


def _error(option: LayerOptions, choice: Choice) -> float:
    if choice is None:
        return option.drop_error
    return option.attention.errors[choice[0]] + option.feed_forward.errors[choice[1]]


def _spread(tokens: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """Put a batch's tokens, (tokens, hidden), back among its padding, which is zero."""
    import torch

    hidden = torch.zeros(*batch.mask.shape, tokens.shape[1])
    hidden[batch.mask] = tokens
    return hidden
