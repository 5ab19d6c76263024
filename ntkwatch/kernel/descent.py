"""What descent does to one eigenmode of a quadratic loss: how far it shrinks, when it grows.

Tensors in, tensors out: nothing here knows of models, steps or files. In discrete steps everything
is a function of ``x = eta h lambda``: learning rate, curvature of the loss, eigenvalue. With
momentum ``beta`` and dampening ``tau``, ``torch.optim.SGD`` keeps a buffer
``b <- beta b + (1 - tau) g`` (its first gradient comes in undamped) and steps along ``b``, or along
``g + beta b`` with Nesterov.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError

__all__ = [
    "PLAIN",
    "SGD",
    "SquareLoss",
    "decay_factors",
    "gradient_flow_bound",
    "square_loss_curvature",
    "time_to_loss",
]

SquareLoss: TypeAlias = Literal["half-square-sum", "square-sum", "square-mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Settings of ``torch.optim.SGD`` under the same names.

    Attributes:
        momentum: ``beta`` in [0, 1).
        dampening: ``tau`` in [0, 1). Equal to the momentum it makes the buffer a moving average, as
            the first moment of Adam is.
        nesterov: Whether gradients are taken with Nesterov's correction.

    Raises:
        InputError: If torch would refuse them, or the buffer would grow without bound.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse settings without a stable rate."""
        if not (0 <= self.momentum < 1 and 0 <= self.dampening < 1):
            raise InputError(
                f"momentum={self.momentum} and dampening={self.dampening} have no stable learning "
                "rate. Give both at least 0 and below 1."
            )
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise InputError(
                f"Nesterov with momentum={self.momentum} and dampening={self.dampening} is not "
                "defined in torch either. Give a momentum above 0 and no dampening."
            )

    @property
    def stable_product(self) -> float:
        """The largest ``eta h`` at which a mode does not grow: 2 without momentum.

        ``2 (1 + beta) / (1 - tau)`` for heavy ball and ``2 (1 + beta) / (1 + 2 beta)`` for
        Nesterov: at these the recurrence of ``decay_factors`` has the root -1, and below them both
        of its roots lie in the unit circle (Jury's conditions).
        """
        if self.nesterov:
            return 2 * (1 + self.momentum) / (1 + 2 * self.momentum)
        return 2 * (1 + self.momentum) / (1 - self.dampening if self.momentum else 1)


PLAIN = SGD()


def square_loss_curvature(loss: SquareLoss, *, samples: int, outputs: int) -> float:
    """Return ``h`` with ``d^2 L / df^2 = h I``.

    Args:
        loss: ``"square-mean"`` is ``MSELoss()``, a mean over samples and outputs;
            ``"square-sum"`` is ``MSELoss(reduction="sum")``; ``"half-square-sum"`` is
            ``sum (f - y)^2 / 2``, the loss of most formulas.
        samples: N that the loss adds up.
        outputs: C per sample.

    Returns:
        ``2 / (N C)``, 2 or 1.

    Raises:
        InputError: If it is no square loss.
    """
    curvatures = {
        "half-square-sum": 1.0,
        "square-sum": 2.0,
        "square-mean": 2.0 / (samples * outputs),
    }
    if loss not in curvatures:
        raise InputError(
            f"loss={loss!r} has no constant curvature. Give one of {', '.join(curvatures)}."
        )
    return curvatures[loss]


def decay_factors(
    products: Float[Tensor, " n"],
    *,
    steps: int,
    sgd: SGD = PLAIN,
) -> Float[Tensor, " n"]:
    """Return by what each mode is multiplied in ``steps`` steps of full-batch descent from rest.

    ``(1 - x)^t`` without momentum. With it ``r_{t+1} = p r_t - q r_{t-1}``, where
    ``p = 1 + beta - (1 - tau) x`` and ``q = beta`` for heavy ball, ``p = (1 + beta)(1 - x)`` and
    ``q = beta (1 - x)`` for Nesterov, started at ``r_0 = 1`` and ``r_1 = 1 - x`` (Nesterov:
    ``1 - (1 + beta) x``).

    Args:
        products: ``x = eta h lambda_k`` of each mode.
        steps: ``t``, at least 0.
        sgd: Momentum, if any.

    Returns:
        Factors without unit; above 1 in size for modes that grow.

    Raises:
        InputError: If the number of steps is negative.

    Source:
        Derived from the update rule in the documentation of ``torch.optim.SGD``.
    """
    if steps < 0:
        raise InputError(f"{steps} steps of descent cannot be taken. Give a number from 0 up.")
    if sgd.momentum == 0:
        return (1 - products) ** steps
    beta = sgd.momentum
    if sgd.nesterov:
        first = 1 - (1 + beta) * products
        p, q = (1 + beta) * (1 - products), beta * (1 - products)
    else:
        first = 1 - products
        p, q = 1 + beta - (1 - sgd.dampening) * products, torch.full_like(products, beta)
    # A power of the step's matrix takes log t products, and no branch for two equal roots.
    rows = [
        torch.stack([p, -q], dim=-1),
        torch.stack([torch.ones_like(p), torch.zeros_like(p)], -1),
    ]
    powers = torch.linalg.matrix_power(torch.stack(rows, dim=-2), steps)
    # The vector is (r_1, r_0): after t steps its second entry is r_t.
    return powers[:, 1, 0] * first + powers[:, 1, 1]


def gradient_flow_bound(
    initial_loss: Float[Tensor, ""],
    eigenvalue: Float[Tensor, ""],
    *,
    time: Float[Tensor, " *t"],
    curvature: float = 1.0,
) -> Float[Tensor, " *t"]:
    """Return ``L(0) exp(-2 h lambda t)``, a bound on a **square** loss under gradient flow.

    Args:
        initial_loss: ``L(0)``.
        eigenvalue: The smallest one of the flat full kernel makes it an upper bound, for as long as
            no kernel on the way has a smaller one; the largest makes it a lower bound.
        time: Learning rate times steps; for discrete steps it holds in the limit of small rates.
        curvature: ``h``, from ``square_loss_curvature``.

    Returns:
        A loss for each time.

    Source:
        ``dL/dt = -h^2 r' K r <= -2 h lambda_min L`` with ``L = h |r|^2 / 2``; for two-layer
        networks Du et al., ICLR 2019, arXiv:1810.02054.
    """
    return initial_loss * torch.exp(-2 * curvature * eigenvalue * time)


def time_to_loss(
    initial_loss: Float[Tensor, ""],
    eigenvalue: Float[Tensor, ""],
    *,
    target: Float[Tensor, " *t"],
    curvature: float = 1.0,
) -> Float[Tensor, " *t"]:
    """Return when ``gradient_flow_bound`` reaches a loss: ``ln(L(0) / L) / (2 h lambda)``.

    Args:
        initial_loss: ``L(0)``.
        eigenvalue: As in ``gradient_flow_bound``: with the smallest one the loss is reached no
            later, with the largest no earlier.
        target: Losses to reach, above 0.
        curvature: ``h``, from ``square_loss_curvature``.

    Returns:
        Learning rate times steps: 0 for losses that are reached at the start, infinite where the
        eigenvalue is not positive (or NaN, at its rounding floor), so that nothing is promised.
    """
    needed = (initial_loss / target).log().clamp(min=0)
    rate = 2 * curvature * eigenvalue
    later = torch.where(rate > 0, needed / rate, torch.inf)
    return torch.where(needed > 0, later, 0.0)
