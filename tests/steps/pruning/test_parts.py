"""The parts of pruning, each against what brute force or hand arithmetic gives."""

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.errors import StepError
from optbench.model.body import Body
from optbench.steps.calibration.smoothing import smoothing_scale
from optbench.steps.pruning.allocation import LayerOptions, Part, allocate
from optbench.steps.pruning.latency import LayerTimes, fit_layer_times, probe_bodies
from optbench.steps.pruning.refit import Normal
from optbench.steps.pruning.removal import LinearLayer, order_removals
from optbench.steps.pruning.rounding import Rounding, predict_rounding

LARGE = Body(architecture="BertModel", layers=24, hidden=1024, heads=16, feed_forward=4096, vocabulary=30522, positions=512)


def least_squares_error(weight: torch.Tensor, moments: torch.Tensor, sensitivity: torch.Tensor, kept: list[int]) -> float:
    """The least E[(g'(W - V)x)^2] over V that reads `kept` only, by solving for V."""
    change = weight.clone()
    solved = torch.linalg.solve(moments[kept][:, kept], moments[kept] @ weight.T).T
    change[:, kept] -= solved
    gone = [index for index in range(weight.shape[1]) if index not in kept]
    change[:, gone] = weight[:, gone]
    return float(torch.trace(sensitivity @ change @ moments @ change.T))


def example(inputs: int, outputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight, x, g = (torch.randn(rows, columns, generator=generator) for rows, columns in ((outputs, inputs), (60, inputs), (60, outputs)))
    x[:, 0] += x[:, -1]  # inputs that tell of each other
    return weight, x.T @ x / 60, g.T @ g / 60


@pytest.mark.parametrize(("unit", "step"), [(1, 1), (1, 5), (3, 1)])
def test_error_of_a_removal_is_that_of_the_best_fit_without_the_inputs(unit: int, step: int) -> None:
    weight, moments, sensitivity = example(12, 5, 0)
    curve = order_removals(LinearLayer(weight, moments, sensitivity), unit=unit, step=step, damping=1e-9, where="here")
    kept = [unit * each + offset for each in curve.kept(2, 12 // unit) for offset in range(unit)]
    # float32 second moments of order 1 with a condition of some hundreds.
    assert curve.errors[2] == pytest.approx(least_squares_error(weight, moments, sensitivity, kept), rel=1e-3)
    assert list(curve.errors) == sorted(curve.errors)


def test_first_unit_to_go_is_the_cheapest_of_all() -> None:
    weight, moments, sensitivity = example(12, 5, 1)
    curve = order_removals(LinearLayer(weight, moments, sensitivity), unit=1, step=1, damping=1e-9, where="here")
    errors = [least_squares_error(weight, moments, sensitivity, [i for i in range(12) if i != gone]) for gone in range(12)]
    assert curve.order[0] == int(np.argmin(errors))


def test_of_two_inputs_that_are_copies_only_one_goes_for_nothing() -> None:
    weight, _, sensitivity = example(8, 5, 2)
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(3))
    x[:, 5] = x[:, 2]
    curve = order_removals(LinearLayer(weight, x.T @ x / 400, sensitivity), unit=1, step=2, damping=1e-6, where="here")
    # In a step of two, one of the copies goes free, and then the other is as dear as any.
    assert curve.order[0] in (2, 5)
    assert not {2, 5} <= set(curve.order[:2])


def test_neurons_chosen_in_blocks_cost_little_more_than_one_by_one() -> None:
    weight, moments, sensitivity = example(24, 6, 4)
    single, block = (
        order_removals(LinearLayer(weight, moments, sensitivity), unit=1, step=step, damping=0.01, where="here") for step in (1, 4)
    )
    assert block.errors[2] == pytest.approx(single.errors[8], rel=0.05)


def int8_error(weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> float:
    """What rounding activations and weights to int8 after SmoothQuant's scales moves the output by, tried out."""
    scale = torch.from_numpy(smoothing_scale(x.abs().amax(0).numpy(), weight.abs().amax(0).numpy(), 0.75))

    def rounded(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        step = largest / 127.5
        return (values / step).round() * step

    smooth_x, smooth_weight = x / scale, weight * scale
    product = rounded(smooth_x, smooth_x.abs().max()) @ rounded(smooth_weight, smooth_weight.abs().amax(1, keepdim=True)).T
    return float(((product - x @ weight.T) @ g.T).square().mean())


def test_rounding_error_is_what_rounding_does() -> None:
    generator = torch.Generator().manual_seed(6)
    weight, x, g = (torch.randn(rows, columns, generator=generator) for rows, columns in ((64, 48), (4000, 48), (200, 64)))
    x[:, 7] *= 5.0  # an outlier, as transformers have
    moments, sensitivity = x.T @ x / len(x), g.T @ g / len(g)
    found = predict_rounding(weight, x.abs().amax(0), moments, sensitivity)
    norms = torch.einsum("oj,op,pj->j", weight, sensitivity, weight)
    # Rounding errors are uniform and independent, and there are enough of them, up to a few percent.
    assert float((found.by_weight * norms + found.fixed).sum()) == pytest.approx(int8_error(weight, x, g), rel=0.05)


@pytest.mark.parametrize("unit", [1, 4])
def test_unit_whose_rounding_costs_more_than_its_loss_goes_first_and_errors_count_what_it_saves(unit: int) -> None:
    weight, moments, sensitivity = example(12, 5, 7)
    plain = order_removals(LinearLayer(weight, moments, sensitivity), unit=unit, step=1, damping=1e-9, where="here")
    dear = next(index for index in range(12 // unit) if index != plain.order[0])
    fixed = torch.zeros(12)
    fixed[dear * unit] = 1e4
    layer = LinearLayer(weight, moments, sensitivity, Rounding(torch.zeros(12), fixed))
    curve = order_removals(layer, unit=unit, step=1, damping=1e-9, where="here")
    kept = [index for index in range(12) if index // unit != dear]
    assert curve.order[0] == dear
    assert curve.errors[1] == pytest.approx(least_squares_error(weight, moments, sensitivity, kept) - 1e4, rel=1e-3)


def test_moments_that_are_not_finite_are_an_error() -> None:
    weight, moments, sensitivity = example(6, 4, 5)
    moments[2, 3] = moments[3, 2] = torch.nan
    with pytest.raises(StepError, match=r"layer 3: the second moments of 6 inputs cannot be factored"):
        order_removals(LinearLayer(weight, moments, sensitivity), unit=1, step=1, damping=0.01, where="layer 3")


parts = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), min_size=1, max_size=3).map(
    lambda rows: Part(tuple(float(cost) for cost, _ in rows), tuple(float(error) for _, error in rows))
)
layers_of_options = st.lists(st.builds(LayerOptions, parts, parts, st.sampled_from([float("inf"), 5.0, 40.0])), min_size=1, max_size=3)


def total(layers: list[LayerOptions], choices: list[tuple[int, int] | None]) -> tuple[float, float]:
    cost = error = 0.0
    for layer, choice in zip(layers, choices, strict=True):
        if choice is None:
            error += layer.drop_error
        else:
            cost += layer.attention.costs[choice[0]] + layer.feed_forward.costs[choice[1]]
            error += layer.attention.errors[choice[0]] + layer.feed_forward.errors[choice[1]]
    return cost, error


# 8,000 divides by these budgets, so whole costs fall on cells and nothing is rounded.
@settings(max_examples=60)
@given(layers_of_options, st.sampled_from([10, 20, 40]))
def test_allocation_is_the_best_of_all_choices(layers: list[LayerOptions], budget: int) -> None:
    each = [[None, *product(range(len(layer.attention.costs)), range(len(layer.feed_forward.costs)))] for layer in layers]
    everything = [total(layers, list(choices)) for choices in product(*each)]
    best = min((error for cost, error in everything if cost <= budget), default=float("inf"))
    found = allocate(layers, float(budget))
    if not np.isfinite(best):
        assert found is None
    else:
        assert found is not None
        cost, error = total(layers, found)
        assert cost <= budget
        assert error == pytest.approx(best)


def test_budget_below_nothing_is_out_of_reach() -> None:
    assert allocate([LayerOptions(Part((1.0,), (0.0,)), Part((1.0,), (0.0,)))], -1.0) is None


def test_refit_finds_the_layer_that_made_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, linear = torch.nn.Linear(7, 4), torch.nn.Linear(7, 4)
    normal = Normal(7, 4)
    for _ in range(3):
        x = torch.randn(50, 7, generator=generator)
        normal.add(x, wanted(x).detach(), torch.rand(50, generator=generator))
    normal.solve_into([linear], 1e-9, "here")
    torch.testing.assert_close(linear.weight, wanted.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(linear.bias, wanted.bias, atol=1e-5, rtol=0)


def test_refit_leaves_weights_alone_whose_input_never_moves() -> None:
    linear = torch.nn.Linear(3, 2)
    before = linear.weight.detach().clone()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    normal = Normal(3, 2)
    normal.add(x, torch.zeros(50, 2), torch.ones(50))
    normal.solve_into([linear], 0.01, "here")
    assert torch.equal(linear.weight[:, 1], before[:, 1])
    assert linear.weight[:, [0, 2]].abs().max() < 0.05


def test_refit_on_a_nan_is_an_error() -> None:
    normal = Normal(3, 2)
    normal.add(torch.full((4, 3), torch.nan), torch.zeros(4, 2), torch.ones(4))
    with pytest.raises(StepError, match="layer 1: its activations are not finite, or all equal"):
        normal.solve_into([torch.nn.Linear(3, 2)], 0.01, "layer 1")


def test_layer_times_give_back_the_bodies_they_came_from() -> None:
    def ms(body: Body, length: int) -> float:
        return 0.5 + sum(0.1 + 0.01 * length * heads + 0.0002 * length * width for heads, width in body.sizes)

    bodies = probe_bodies(LARGE)
    assert {body.layers for body in bodies} == {6, 3, 24}
    times = fit_layer_times(bodies, [{n: ms(body, n) for n in (8, 64)} for body in bodies])
    for sizes in (LARGE.sizes, [(3, 700), (11, 4096), (1, 64)]):
        body = LARGE.model_copy(update={"layers": len(sizes)})
        uneven = body.model_copy(update={"layer_heads": tuple(h for h, _ in sizes), "layer_feed_forward": tuple(w for _, w in sizes)})
        assert times.body_ms(sizes, 64) == pytest.approx(ms(uneven, 64))
    assert LayerTimes.model_validate_json(times.model_dump_json()) == times


def test_what_depth_adds_is_added_to_a_pruned_body_too() -> None:
    def ms(sizes: Sequence[tuple[int, int]]) -> float:
        layer, unit = (0.8, 1.2) if len(sizes) > 6 else (0.5, 1.0)
        return layer * len(sizes) + unit * sum(0.5 * heads + 0.004 * width for heads, width in sizes)

    bodies = probe_bodies(LARGE)
    assert [(body.sizes, body.vocabulary) for body in bodies[-2:]] == [(((8, 2048),) * 24, 4096), (LARGE.sizes, 4096)]
    times = fit_layer_times(bodies, [{8: ms(body.sizes)} for body in bodies])
    for sizes in (LARGE.sizes, [(10, 2600)] * 24, [(16, 1024)] * 12 + [(4, 4096)] * 12):
        assert times.body_ms(sizes, 8) == pytest.approx(ms(sizes))


def test_probe_at_half_of_a_pruned_body_is_even() -> None:
    pruned = LARGE.model_copy(update={"layer_heads": (16, 9) * 12, "layer_feed_forward": (4096, 2112) * 12})
    half, whole = probe_bodies(pruned)[-2:]
    assert (set(half.sizes), whole.sizes) == ({(8, 2048)}, pruned.sizes)


def test_body_no_deeper_than_a_probe_is_not_timed_twice() -> None:
    bodies = probe_bodies(LARGE.model_copy(update={"layers": 6}))
    assert [body.layers for body in bodies] == [6, 3, 6, 6, 6, 6]


@pytest.mark.parametrize("slow", range(8))
def test_one_probe_that_was_timed_too_slow_moves_a_ratio_by_little(slow: int) -> None:
    def ms(sizes: Sequence[tuple[int, int]]) -> float:
        return 1.0 + sum(0.5 + 0.5 * heads + 0.004 * width for heads, width in sizes)

    bodies = probe_bodies(LARGE)
    noisy = [ms(body.sizes) * (1.1 if number == slow else 1.0) for number, body in enumerate(bodies)]
    times = fit_layer_times(bodies, [{8: each} for each in noisy])
    pruned = [(10, 2600)] * 24
    assert times.fixed[8] >= 0
    assert times.body_ms(pruned, 8) / times.body_ms(LARGE.sizes, 8) == pytest.approx(ms(pruned) / ms(LARGE.sizes), rel=0.06)


def test_probe_bodies_of_mpnet_say_which_position_biases_their_heads_read() -> None:
    bodies = probe_bodies(LARGE.model_copy(update={"architecture": "MPNetModel", "pad_id": 1}))
    for body in bodies:
        Body.model_validate(body.model_dump())
    assert len({(body.layers, body.sizes) for body in bodies}) == len(bodies)
    assert all(a != b for a, b in combinations([body.sizes for body in bodies], 2))
