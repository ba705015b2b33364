"""What static int8 will add to the error of a linear layer, by input: removing an input also removes its rounding error.

A value rounded to steps of width d is off by d^2 / 12 in the mean square. With one step for all inputs and one for each output's
weights, both after SmoothQuant's scales s, the output's error in the unit of `removal` is

    sum over inputs j of   (d_j^2 / 12) |A w_j|^2  +  E[x_j^2] sum over outputs o of (A'A)_oo (d_o / s_j)^2 / 12

Where outliers make the steps wide, a neuron of little use costs more by its rounding than by its removal.

Source: the noise of uniform quantizers, Widrow and Kollar 2008; the scales as `quantize_static` sets them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.steps.calibration.smoothing import smoothing_scale

if TYPE_CHECKING:
    import torch

__all__ = ["Rounding", "predict_rounding"]

# The default of quantize_static.
SMOOTH_QUANT_ALPHA = 0.75
# Symmetric ranges: a step is the largest magnitude over this.
STEPS = 127.5


@dataclass(frozen=True)
class Rounding:
    """The error that each input's rounding adds.

    Attributes:
        by_weight: (in,), the activation's rounding error as a factor on the input's |A w|^2.
        fixed: (in,), the weights' rounding error; it does not depend on the other inputs.
    """

    by_weight: "torch.Tensor"
    fixed: "torch.Tensor"


def predict_rounding(weight: "torch.Tensor", maxima: "torch.Tensor", moments: "torch.Tensor", sensitivity: "torch.Tensor") -> Rounding:
    """The rounding errors of a layer in static int8.

    `weight` is (out, in), `maxima` (in,) the largest magnitude of each input; `moments` and `sensitivity` are `LinearLayer`'s.
    """
    import torch

    scale = torch.from_numpy(smoothing_scale(maxima.numpy(), weight.abs().amax(0).numpy(), SMOOTH_QUANT_ALPHA))
    step = scale * (maxima / scale).max() / STEPS
    weight_steps = (weight.abs() * scale).amax(1) / STEPS
    weight_error = (sensitivity.diagonal() * weight_steps.square()).sum() / 12
    return Rounding(by_weight=step.square() / 12, fixed=moments.diagonal() * weight_error / scale.square())
