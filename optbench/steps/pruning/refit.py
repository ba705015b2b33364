"""Least squares that fit a smaller layer's output to the whole one's, on the inputs that it now has."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optbench.errors import StepError

if TYPE_CHECKING:
    import torch

__all__ = ["Normal"]


# Tokens summed in float32 at a time: with fewer, reading and writing the sums would dominate.
TOKENS_AT_A_TIME = 2048


class Normal:
    """The normal equations of `target = W x + b` with weighted tokens, accumulated batch by batch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        import torch

        self._moments = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self._cross = torch.zeros(outputs, inputs + 1, dtype=torch.float64)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, inputs: "torch.Tensor", targets: "torch.Tensor", weights: "torch.Tensor") -> None:
        """Add tokens: (tokens, in), (tokens, out), and their weights (tokens,)."""
        self._waiting.append((inputs, targets, weights))
        if sum(len(each) for _, _, each in self._waiting) >= TOKENS_AT_A_TIME:
            self._take_in()

    def _take_in(self) -> None:
        import torch

        if not self._waiting:
            return
        inputs, targets, weights = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        self._waiting = []
        extended = torch.nn.functional.pad(inputs, (0, 1), value=1.0)
        weighted = extended * weights[:, None]
        self._moments += extended.T @ weighted
        self._cross += targets.T @ weighted

    def solve_into(self, linears: Sequence[Any], damping: float, where: str) -> None:
        """Set linear layers, outputs concatenated, to the solution; where the tokens do not determine a weight, it stays near its value.

        `damping` is the share of the inputs' mean second moment that penalizes the change of each weight. Raises StepError at a NaN or
        infinity in the activations, or equations that cannot be solved.
        """
        import torch

        self._take_in()
        before = torch.cat([torch.cat([linear.weight, linear.bias[:, None]], dim=1) for linear in linears]).detach().double()
        ridge = self._moments.diagonal()[:-1].mean() * damping
        diagonal = torch.full((len(self._moments),), float(ridge), dtype=torch.float64)
        # The bias is not regularized.
        diagonal[-1] = 1e-9
        factor, failed = torch.linalg.cholesky_ex(self._moments + torch.diag(diagonal))
        if failed or not (factor.sum() + self._cross.sum()).isfinite():
            raise StepError(f"{where}: its activations are not finite, or all equal; check the base's weights and the calibration texts")
        change = torch.cholesky_solve((self._cross - before @ self._moments).T, factor).T.float()
        with torch.no_grad():
            for linear, rows in zip(linears, change.split([linear.out_features for linear in linears]), strict=True):
                linear.weight += rows[:, :-1]
                linear.bias += rows[:, -1]
