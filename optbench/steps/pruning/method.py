"""Make a body smaller in rounds: score what each layer can lose, allocate the budget, remove, and refit the remaining weights.

Each round starts from the model that the round before left, and every refit targets what the whole model computes: a layer's linear
parts are fitted in the order of computation, to give the whole layer's output on the inputs that they now have. So each layer
compensates for the errors of earlier layers as far as it can.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.errors import StepError
from optbench.machine.progress import Progress
from optbench.model.torch_model import encoder_layers, resize_layer
from optbench.steps.pruning.allocation import Choice, LayerOptions, Part, allocate
from optbench.steps.pruning.costs import Costs
from optbench.steps.pruning.refit import Normal
from optbench.steps.pruning.removal import LinearLayer, RemovalCurve, order_removals
from optbench.steps.pruning.rounding import predict_rounding
from optbench.steps.pruning.states import Batch, embed, layer_context, layer_states, run_block, start

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from optbench.steps.prune_structured import PruneStructured

    # For each batch and layer, the weight of each token at the attention's and at the feed-forward's sum.
    _TokenWeights = list[list[tuple[torch.Tensor, torch.Tensor]]]

__all__ = ["Pruner", "RoundResult"]

# Texts to try the removal of whole layers on; each layer takes a run of half the body over them.
DROP_TEXTS = 24


@dataclass(frozen=True)
class RoundResult:
    """The result of a round.

    Attributes:
        sizes: heads and feed-forward width of each remaining layer.
        dropped: the layers that this round dropped, by their number in the whole model.
        predicted: the squared distance of unit embeddings that the scores predicted for this round's removals, less what later layers
            are assumed to compensate (the option `lasting`).
        cosine: to the whole model, mean over the calibration texts, measured after the round.
    """

    sizes: tuple[tuple[int, int], ...]
    dropped: tuple[int, ...]
    predicted: float
    cosine: float


class _Inputs:
    """Statistics of a linear layer's inputs, accumulated batch by batch; `maxima` (in,) is the largest magnitude of each."""

    def __init__(self, width: int) -> None:
        import torch

        self._sums = torch.zeros(width, width)
        self._tokens = 0
        self.maxima = torch.zeros(width)

    def add(self, inputs: "torch.Tensor", weights: "torch.Tensor") -> None:
        """Add tokens: (tokens, in), and their weights (tokens,)."""
        self._sums.addmm_(inputs.T, inputs * weights[:, None])
        self._tokens += len(inputs)
        self.maxima = self.maxima.maximum(inputs.abs().amax(0))

    def moments(self) -> "torch.Tensor":
        """E[x x'], (in, in), tokens weighted."""
        return self._sums / self._tokens


@dataclass
class Pruner:
    """The state of a pruning run, in which `model`, at first the same as `whole`, is made smaller round by round."""

    whole: "PreTrainedModel"
    model: "PreTrainedModel"
    batches: Sequence[Batch]
    pooling: str
    costs: Costs
    settings: "PruneStructured"
    where: str
    progress: Progress

    def __post_init__(self) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(self.settings.seed)
        # The layer of the whole model that each layer of the smaller one comes from.
        self.origins = list(range(len(self.whole.encoder.layer)))
        # The heads and neurons that each layer of the whole model still has.
        self.heads = [list(range(layer.heads)) for layer in encoder_layers(self.whole)]
        self.neurons = [list(range(layer.feed_forward)) for layer in encoder_layers(self.whole)]
        self._wanted = [self._finish(self.whole, start(self.whole, batch), batch, 0) for batch in self.batches]
        if not all(bool(vectors.isfinite().all()) for vectors in self._wanted):
            raise StepError(f"{self.where}: the whole model's embeddings are not finite; its weights hold a NaN: download it again")

    def run_round(self, budget: float, share: tuple[float, float]) -> RoundResult:
        """Prune to `budget`, in the unit of `costs`; `share` is where the round begins and ends in the whole step's progress."""
        begin, span = share[0], share[1] - share[0]
        self.progress("probing the embedding", begin)
        sensitivity, weights = self._probe()
        options, curves, layers = [], [], encoder_layers(self.model)
        drops = self._drop_errors() if self.settings.drop_layers else [float("inf")] * len(self.origins)
        # From layer to layer, the share of an error that lasts grows by the same factor, to 1 at the last.
        lasting = (self.settings.lasting ** np.linspace(0, 1, len(self.origins))[::-1]).tolist()
        for index, (inputs, layer) in enumerate(self._walk_inputs(weights)):
            self.progress(f"scoring layer {index}", begin + span * (0.3 + 0.3 * index / len(self.origins)))
            attention, feed_forward = self._curves(layer, inputs, sensitivity[index], index)
            curves.append((attention, feed_forward))
            heads = _part(attention, layer.heads, self.costs.attention, lasting[index])
            widths = _part(feed_forward, layer.feed_forward, self.costs.feed_forward, lasting[index])
            options.append(LayerOptions(heads, widths, drops[index] * lasting[index]))
        choices = allocate(options, budget - self.costs.fixed)
        if choices is None or not any(choices):
            least = self.costs.total(
                [(max(1, self.settings.round_to // layer.attention.attention_head_size), self.settings.round_to) for layer in layers]
            )
            raise StepError(
                f"{self.where}: a budget of {budget:.4g} is out of reach: the smallest body costs {least:.4g}; raise the budget"
            )
        predicted = sum(_error(option, choice) for option, choice in zip(options, choices, strict=True))
        dropped = self._remove(choices, curves)
        outputs = self._refit(weights, choices, begin + 0.6 * span, 0.4 * span)
        sizes = tuple((layer.heads, layer.feed_forward) for layer in encoder_layers(self.model))
        return RoundResult(sizes, dropped, predicted, self._cosine(outputs))

    def _cosine(self, outputs: "Sequence[torch.Tensor]") -> float:
        """Mean cosine to the whole model over the calibration texts, from the last layer's output for each batch."""
        import torch

        vectors = [embed(*each, self.pooling) for each in zip(outputs, self.batches, strict=True)]
        return float((torch.cat(vectors) * torch.cat(self._wanted)).sum(1).mean())

    def _finish(self, model: "PreTrainedModel", hidden: "torch.Tensor", batch: Batch, first: int) -> "torch.Tensor":
        """The embeddings, from the input of layer `first`."""
        for block in list(model.encoder.layer)[first:]:
            hidden = run_block(model, block, hidden, batch)
        return embed(hidden, batch, self.pooling)

    def _drop_errors(self) -> list[float]:
        """The squared distance by which unit embeddings move when a layer is removed without compensation."""
        import torch

        chosen: list[Batch] = []
        for index in np.random.default_rng(0).permutation(len(self.batches)):
            if sum(len(batch.ids) for batch in chosen) < DROP_TEXTS:
                chosen.append(self.batches[index])
        hiddens = [start(self.model, batch) for batch in chosen]
        expected = [self._finish(self.model, hidden, batch, 0) for hidden, batch in zip(hiddens, chosen, strict=True)]
        errors = []
        for index, block in enumerate(self.model.encoder.layer):
            self.progress(f"trying the body without layer {self.origins[index]}", None)
            without = [self._finish(self.model, hidden, batch, index + 1) for hidden, batch in zip(hiddens, chosen, strict=True)]
            errors.append(float((torch.cat(without) - torch.cat(expected)).square().sum(1).mean()))
            hiddens = [run_block(self.model, block, hidden, batch) for hidden, batch in zip(hiddens, chosen, strict=True)]
        return errors

    def _probe(self) -> "tuple[list[tuple[torch.Tensor, torch.Tensor]], _TokenWeights]":
        """Gradients of random directions of the embedding at both sums of each layer.

        Returns:
            For each layer E[g g'] at the attention's and the feed-forward's output, summed over a text's tokens and averaged over texts;
            and for each batch and layer the weight of each token at both, its squared gradient divided by the mean.
        """
        import torch

        hidden_size = self.model.config.hidden_size
        layers = encoder_layers(self.model)
        sums = [(torch.zeros(hidden_size, hidden_size), torch.zeros(hidden_size, hidden_size)) for _ in layers]
        weights: _TokenWeights = []
        texts, probes = sum(len(batch.ids) for batch in self.batches), self.settings.probes
        for batch in self.batches:
            outputs: list[torch.Tensor] = []
            with contextlib.ExitStack() as hooks, torch.enable_grad():
                for layer in layers:
                    for linear in (layer.projection, layer.down):
                        hooks.enter_context(linear.register_forward_hook(lambda _, __, output, kept=outputs: kept.append(output)))
                hidden = start(self.model, batch).detach().requires_grad_()
                for block in self.model.encoder.layer:
                    hidden = run_block(self.model, block, hidden, batch)
                embedding = embed(hidden, batch, self.pooling)
                norms = [torch.zeros(int(batch.mask.sum())) for _ in outputs]
                for probe in range(probes):
                    direction = torch.randn(embedding.shape, generator=self._generator)
                    gradients = torch.autograd.grad((embedding * direction).sum(), outputs, retain_graph=probe + 1 < probes)
                    for place, gradient in enumerate(gradients):
                        rows = gradient[batch.mask]
                        sums[place // 2][place % 2].addmm_(rows.T, rows, alpha=1 / (texts * probes))
                        norms[place] += rows.square().sum(1) / probes
            weights.append([(norms[2 * i], norms[2 * i + 1]) for i in range(len(layers))])
        for index in range(len(layers)):
            for side in range(2):
                mean = torch.cat([batch[index][side] for batch in weights]).mean()
                for batch_weights in weights:
                    batch_weights[index][side].div_(mean)
        return sums, weights

    def _walk_inputs(self, weights: Any) -> Any:
        """For each layer, statistics of the inputs of its projection and down projection, and the layer."""
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
            layer.projection.weight, inputs[0], sensitivity[0], size, max(1, self.settings.round_to // size), f"{where} attention"
        )
        feed_forward = self._curve(layer.down.weight, inputs[1], sensitivity[1], 1, self.settings.round_to, f"{where} feed-forward")
        return attention, feed_forward

    def _curve(self, weight: Any, inputs: "_Inputs", sensitivity: Any, unit: int, step: int, where: str) -> RemovalCurve:
        moments = inputs.moments()
        rounding = predict_rounding(weight, inputs.maxima, moments, sensitivity) if self.settings.int8 else None
        layer = LinearLayer(weight, moments, sensitivity, rounding)
        return order_removals(layer, unit=unit, step=step, damping=self.settings.damping, where=where)

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
        """Fit the linear parts of each layer in turn, with the whole model alongside; returns the last layer's output for each batch."""
        kept = [index for index, choice in enumerate(choices) if choice is not None]
        wholes, smalls = ([start(model, batch) for batch in self.batches] for model in (self.whole, self.model))
        at = 0
        for place, origin in enumerate(self.origins):
            self.progress(f"refitting layer {origin}", begin + span * place / len(self.origins))
            # The whole model also runs the layers that the smaller one has dropped.
            while at < origin:
                block = self.whole.encoder.layer[at]
                wholes = [run_block(self.whole, block, *each) for each in zip(wholes, self.batches, strict=True)]
                at += 1
            # Square roots: with the weights themselves, the few tokens of short texts would dominate the fit.
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
        """Fit one layer, and return the inputs of the next one in both models.

        Each part is fitted to what the whole model computes there: query, key, value and up projection to its values, and the two
        that add to the residual stream to its sums, less the smaller model's stream.
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
            expected = [linear(seen)[:, rows] for linear in (model_layer.query, model_layer.key, model_layer.value)]
            projections.add(residual, torch.cat(expected, dim=1), first)
        projections.solve_into((layer.query, layer.key, layer.value), self.settings.refit_damping, f"{where} projections")

        contexts = [layer_context(self.model, place, *each) for each in zip(smalls, self.batches, strict=True)]
        attention = Normal(layer.projection.in_features, layer.projection.out_features)
        for context, residual, target, (first, _) in zip(contexts, residuals, targets, weights, strict=True):
            attention.add(context, target.attention_sum - residual, first)
        attention.solve_into((layer.projection,), self.settings.refit_damping, f"{where} attention")

        middles = [
            layer.attention_norm(layer.projection(context) + residual) for context, residual in zip(contexts, residuals, strict=True)
        ]
        up = Normal(layer.up.in_features, layer.up.out_features)
        for middle, target, (_, second) in zip(middles, targets, weights, strict=True):
            up.add(middle, model_layer.up(target.middle)[:, self.neurons[origin]], second)
        up.solve_into((layer.up,), self.settings.refit_damping, f"{where} up projection")

        actives = [self.model.encoder.layer[place].intermediate(middle) for middle in middles]
        down = Normal(layer.down.in_features, layer.down.out_features)
        for active, middle, target, (_, second) in zip(actives, middles, targets, weights, strict=True):
            down.add(active, target.output_sum - middle, second)
        down.solve_into((layer.down,), self.settings.refit_damping, f"{where} down projection")

        wholes = [_spread(model_layer.output_norm(target.output_sum), batch) for target, batch in zip(targets, self.batches, strict=True)]
        sums = [layer.down(active) + middle for active, middle in zip(actives, middles, strict=True)]
        return wholes, [_spread(layer.output_norm(each), batch) for each, batch in zip(sums, self.batches, strict=True)]


def _part(curve: RemovalCurve, size: int, cost: Callable[[int], float], lasting: float) -> Part:
    """The sizes that a part of full size `size` may have."""
    sizes = range(size, size - len(curve.errors) * curve.step, -curve.step)
    return Part(tuple(cost(each) for each in sizes), tuple(error * lasting for error in curve.errors))


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
