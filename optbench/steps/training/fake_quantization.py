"""Training that feels int8: weights and activations are rounded in the forward pass, and gradients pass as if they were not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["fake_quantized"]

WEIGHT_MAX = 127
ACTIVATION_MAX = 255
# A row or a batch of zeros has no scale of its own.
SCALE_MIN = 1e-9


@contextmanager
def fake_quantized(body: Any) -> Iterator[int]:
    """Round what the linear layers of a body multiply: weights by output row, symmetric; activations by tensor, between their ends.

    That is what dynamic int8 does on ONNX Runtime and OpenVINO per channel. Outside of the context the layers are as before, with the
    trained weights unrounded.

    Yields:
        how many layers it is.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3; Bengio et al. 2013, arXiv:1308.3432, for the straight-through gradient.
    """
    import torch
    from torch.nn.utils import parametrize

    class RoundedRows(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            scale = (weight.detach().abs().amax(1) / WEIGHT_MAX).clamp(min=SCALE_MIN)
            zero = torch.zeros_like(scale, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -WEIGHT_MAX, WEIGHT_MAX)

    def round_input(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states = arguments[0].float()
        low, high = states.detach().min().clamp(max=0), states.detach().max().clamp(min=0)
        scale = ((high - low) / ACTIVATION_MAX).clamp(min=SCALE_MIN)
        zero = (-low / scale).round().to(torch.int32)
        return (torch.fake_quantize_per_tensor_affine(states, scale, zero, 0, ACTIVATION_MAX), *arguments[1:])

    layers = [module for module in body.encoder.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(round_input) for layer in layers]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedRows())
    try:
        yield len(layers)
    finally:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for hook in hooks:
            hook.remove()
