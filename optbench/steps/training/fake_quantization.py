"""Quantization-aware training: the forward pass rounds weights and activations to int8, and gradients pass straight through."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["fake_quantized"]

WEIGHT_MAX = 127
ACTIVATION_MAX = 255
# An all-zero row or batch would have scale 0.
SCALE_MIN = 1e-9


@contextmanager
def fake_quantized(body: Any) -> Iterator[int]:
    """Round the operands of a body's linear layers: weights symmetrically per output row, activations per tensor from minimum to maximum.

    This matches per-channel dynamic int8 of ONNX Runtime and OpenVINO. After the context, which gives the number of layers, they are
    as before, with the trained weights unrounded.

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
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(round_input))
            parametrize.register_parametrization(layer, "weight", RoundedRows())
            stack.callback(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False)
        yield len(layers)
