"""Training of the linearized model, stopped at any time: the path a frozen kernel would take.

Tensors in, tensors out: nothing here knows of models, steps or files. On a square loss the residual
of a linearized model obeys ``dr/dt = -h K r``, and one decomposition of the kernel gives its state
at every time: what a forecast needs before training, since the end of that path hangs on the
smallest eigenvalues and its beginning does not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.kernel.gram import as_matrix, check_rows
from ntkwatch.kernel.modes import Modes, eigenmodes, residual_modes
from ntkwatch.kernel.regression import apply_kernel
from ntkwatch.kernel.spectrum import rounding_floor

__all__ = ["FrozenTraining", "frozen_training"]

_HALVINGS = 200  # of an interval that starts at 0: more than enough for any float64 in it


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTraining:
    """Square-loss training of a linearized model on its whole training set.

    Time is learning rate times steps under gradient flow, and steps in discrete descent. Modes
    under the rounding floor do not move: nothing is fitted along them or predicted from them.

    Attributes:
        modes: Of the kernel; eigenvalues under the floor are set to 0.
        coefficients: ``v_k' (f_0 - y)``, in the unit of the outputs.
        outputs: C, columns of results.
        curvature: ``h`` of the loss, from ``square_loss_curvature``.
        learning_rate: Of discrete descent, or None for gradient flow.
    """

    modes: Modes
    coefficients: Float[Tensor, "n c"]
    outputs: int
    curvature: float
    learning_rate: float | None

    def residual(self, time: int | float | Tensor) -> Float[Tensor, "n c"]:
        """Return ``f_t - y`` on the training set.

        Args:
            time: Learning rate times steps, or steps.

        Returns:
            One row per training sample, in the unit of the outputs.
        """
        left = self._left(time)[:, None] * self.coefficients
        return (self.modes.vectors @ left).reshape(-1, self.outputs)

    def loss_ratio(self, time: int | float | Tensor) -> Float[Tensor, ""]:
        """Return ``L(t) / L(0) = |f_t - y|^2 / |f_0 - y|^2``.

        Args:
            time: Learning rate times steps, or steps.

        Returns:
            A ratio in [0, 1], falling with time.
        """
        return (self._shares() * self._left(time).square()).sum()

    def time_to_loss_ratio(self, ratio: float) -> Float[Tensor, ""]:
        """Return the earliest time at which the loss is down to a share of its start.

        Args:
            ratio: ``L(t) / L(0)`` to reach.

        Returns:
            Learning rate times steps, or whole steps. Infinite if the loss never gets there, since
            too much of the residual lies on modes that do not move.

        Raises:
            InputError: If the ratio is not positive.
        """
        if not ratio > 0:
            raise InputError(
                f"a loss ratio of {ratio} is never reached in finite time. Give one above 0."
            )
        shares, rates = self._shares(), self._rates()
        moving = (rates > 0) & (shares > 0)
        # What never goes away, and the time by which the slowest mode alone would have done it.
        excess = ratio - shares[~moving].sum()
        slowest = torch.where(moving, rates, torch.inf).min()
        high = (shares[moving].sum() / excess).log().clamp(min=0) / (2 * slowest)
        low = torch.zeros_like(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = (shares * torch.exp(-2 * rates * middle)).sum() > ratio
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        time = high if self.learning_rate is None else self._whole(high, ratio)
        never = (excess <= 0) & (ratio < 1)
        return torch.where(never, torch.inf, time.nan_to_num(0.0, posinf=torch.inf))

    def weights(self, time: int | float | Tensor) -> Float[Tensor, "n c"]:
        """Return ``a`` with ``theta_t - theta_0 = J_0' a``: where the parameters are.

        Args:
            time: Learning rate times steps, or steps.

        Returns:
            One weight per training sample and output: the cotangents of one backward pass.
        """
        values, vectors = self.modes
        gone = torch.where(values > 0, self._gone(time) / values, 0.0)
        return -(vectors @ (gone[:, None] * self.coefficients)).reshape(-1, self.outputs)

    def predictions(
        self,
        cross: Float[Tensor, "m n *cc"],
        start: Float[Tensor, "m c"],
        time: int | float | Tensor,
    ) -> Float[Tensor, "m c"]:
        """Return ``f_t(X*)``, the linearized model on other samples.

        Args:
            cross: ``K(X*, X)``, of the same kind as the kernel that was frozen.
            start: ``f_0(X*)``.
            time: Learning rate times steps, or steps.

        Returns:
            One row per sample, in the unit of the outputs.

        Raises:
            KernelMismatchError: If the kernel is not of these training samples.
            NonFiniteError: If the kernel holds NaN or infinity.
        """
        change = apply_kernel(cross, self.weights(time))
        return start.to(change) + change

    def _whole(self, time: Tensor, ratio: float) -> Tensor:
        """The first whole step from here; this one, where only rounding put the time behind it."""
        step = time.floor()
        reached = (time == 0) | (self.loss_ratio(step) <= ratio)
        return torch.where(reached, step, step + 1)

    def _products(self) -> Tensor:
        """``x = eta h lambda`` of a step, or ``h lambda`` of a unit of time."""
        rate = 1.0 if self.learning_rate is None else self.learning_rate
        return rate * self.curvature * self.modes.values

    def _left(self, time: int | float | Tensor) -> Tensor:
        """By what each mode is multiplied."""
        x = self._products()
        return torch.exp(-x * time) if self.learning_rate is None else (1 - x) ** time

    def _gone(self, time: int | float | Tensor) -> Tensor:
        """``1 -`` that, with all its digits for modes that hardly moved."""
        x = self._products()
        if self.learning_rate is None:
            return -torch.expm1(-x * time)
        small = -torch.expm1(time * torch.log1p(-x.clamp(max=0.5)))
        return torch.where(x < 0.5, small, 1 - (1 - x) ** time)

    def _rates(self) -> Tensor:
        """``-ln`` of the size that a unit of time leaves of a mode."""
        x = self._products()
        if self.learning_rate is None:
            return x
        # A mode that one step removes has no finite rate; the smallest float stands in for 0.
        tiny = torch.finfo(x.dtype).tiny
        slow = -torch.log1p(-x.clamp(max=0.5))
        return torch.where(x < 0.5, slow, -(1 - x).abs().clamp(min=tiny).log())

    def _shares(self) -> Tensor:
        """Share of the loss at the start on each mode."""
        squares = self.coefficients.square().sum(dim=1)
        return squares / squares.sum()


def frozen_training(
    kernel: Float[Tensor, "n n *cc"],
    residual: Float[Tensor, "n c"],
    *,
    curvature: float = 1.0,
    learning_rate: float | None = None,
    precision: torch.dtype | None = None,
) -> FrozenTraining:
    """Return the square-loss training of a linearized model, ready to be read at any time.

    Args:
        kernel: Kernel at the start on the whole training set: full (N, N, C, C), or a trace kernel
            S (N, N), which stands for ``S / C`` times the identity over outputs.
        residual: ``f_0 - y`` there.
        curvature: ``h`` of the loss, from ``square_loss_curvature``.
        learning_rate: Of full-batch gradient descent; None for gradient flow.
        precision: Of the arithmetic that built the kernel; the kernel's own dtype by default.

    Returns:
        The training.

    Raises:
        KernelMismatchError: If kernel and residual do not belong together.
        NonFiniteError: If the kernel holds NaN or infinity.
        InputError: If nothing is left to learn, or descent diverges at this learning rate.

    Source:
        Lee et al., NeurIPS 2019, arXiv:1902.06720.
    """
    check_rows(kernel, residual, "residual")
    outputs = residual.shape[1]
    values, vectors = eigenmodes(as_matrix(kernel, outputs=outputs))
    floor = rounding_floor(values, precision=precision or kernel.dtype)
    modes = Modes(torch.where(values > floor, values, 0.0), vectors)
    coefficients = residual_modes(modes, residual.reshape(len(values), -1))
    training = FrozenTraining(
        modes=modes,
        coefficients=coefficients,
        outputs=outputs,
        curvature=curvature,
        learning_rate=learning_rate,
    )
    if not bool(coefficients.any()):
        raise InputError(
            f"the {len(residual)} outputs at the start equal their targets, so there is nothing to "
            "learn. Give f_0 - y of an untrained model."
        )
    if learning_rate is not None and not 0 < learning_rate * curvature * values[0] < 2:
        raise InputError(
            f"at learning_rate={learning_rate:g} the linearized model does not converge: the "
            f"largest stable rate is {2 / (curvature * values[0]):.3g}. Give one below it."
        )
    return training
