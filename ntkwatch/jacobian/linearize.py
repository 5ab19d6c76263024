"""``J v``: how the outputs would change if the network were linear in its parameters.

Forward mode where every operation has it, the double-vjp trick where not, and a central difference
where neither works. Forward mode is checked against reverse mode each time, since the two disagree
silently in places (the padding row of an embedding).
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.functional import Params

__all__ = ["Linearized", "OutputsOf", "jacobian_vector_product"]

OutputsOf = Callable[[Params], Tensor]

# What torch raises for an operation without a derivative of the kind asked for.
_CANNOT = (RuntimeError, NotImplementedError, TypeError, ValueError)
_STEP = 1e-4  # of the central difference, relative to the parameters' norm; cubed it is 1e-12


class Linearized(NamedTuple):
    """A Jacobian-vector product and how it was computed.

    Attributes:
        change: ``J v``, of the shape of the outputs.
        method: "jvp", "double-vjp" or "finite-difference".
    """

    change: Tensor
    method: str


def jacobian_vector_product(
    outputs_of: OutputsOf,
    params: Params,
    tangents: Params,
    *,
    in_float64: Callable[[], OutputsOf] | None = None,
) -> Linearized:
    """Return ``J(theta) v``, the directional derivative of the outputs.

    Args:
        outputs_of: The outputs as a function of parameters.
        params: Where to differentiate, ``theta``.
        tangents: Direction ``v``, with the keys of ``params``.
        in_float64: Makes the same function in float64, for the central difference.

    Returns:
        The derivative with the method that gave it.

    Raises:
        CoverageError: If no method works.
    """
    failures: list[str] = []
    # Fused attention has no forward mode and no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        for method, compute in (("jvp", _forward_mode), ("double-vjp", _double_vjp)):
            try:
                change = compute(outputs_of, params, tangents)
                if method == "double-vjp" or _agrees_with_reverse(
                    outputs_of, params, tangents, change
                ):
                    return Linearized(change, method)
                failures.append("jvp: disagrees with reverse mode")
            except _CANNOT as error:
                failures.append(f"{method}: {type(error).__name__}: {str(error)[:200]}")
    try:
        wide = outputs_of if in_float64 is None else in_float64()
        change = _central_difference(wide, params, tangents)
    except _CANNOT as error:
        raise CoverageError(
            "the model could not be linearized, so there is no linearization error: "
            f"{'; '.join(failures)}; finite-difference: {error}. Pass forward= to watch a part "
            "of the model that autograd can differentiate."
        ) from error
    return Linearized(change, "finite-difference")


def _forward_mode(outputs_of: OutputsOf, params: Params, tangents: Params) -> Tensor:
    with warnings.catch_warnings():
        # Forward mode imports torch's decompositions, which are scripted: torch's own affair.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        _, change, *_ = jvp(outputs_of, (params,), (tangents,))
    return change.detach()


def _double_vjp(outputs_of: OutputsOf, params: Params, tangents: Params) -> Tensor:
    """``J' u`` is linear in u, so its derivative by u along v is ``J v``."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    outputs = outputs_of(leaves)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(
        outputs, list(leaves.values()), u, create_graph=True, allow_unused=True
    )
    pairs = [(g, tangents[name]) for name, g in zip(leaves, pulled, strict=True) if g is not None]
    pairs = [(g, v) for g, v in pairs if g.requires_grad]
    if not pairs:
        return torch.zeros_like(outputs).detach()
    (change,) = torch.autograd.grad(
        [g for g, _ in pairs], u, [v for _, v in pairs], allow_unused=True
    )
    return torch.zeros_like(outputs).detach() if change is None else change.detach()


def _agrees_with_reverse(
    outputs_of: OutputsOf, params: Params, tangents: Params, change: Tensor
) -> bool:
    """Compare ``<u, J v>`` with ``<J' u, v>`` for a random u: both are one number."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    outputs = outputs_of(leaves)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    u = u.to(device=outputs.device, dtype=outputs.dtype)
    pulled = torch.autograd.grad(outputs, list(leaves.values()), u, allow_unused=True)
    reverse = sum(
        (g * tangents[name]).sum() for name, g in zip(leaves, pulled, strict=True) if g is not None
    )
    forward = (u * change).sum()
    # A random u sees an error of the product at the size of the error, up to a factor of order 1.
    size = u.norm() * change.norm()
    tolerance = 1e4 * torch.finfo(change.dtype).eps
    return bool((forward - reverse).abs() <= tolerance * size + torch.finfo(change.dtype).tiny)


def _central_difference(outputs_of: OutputsOf, params: Params, tangents: Params) -> Tensor:
    length = torch.stack([v.norm().double() for v in tangents.values()]).norm()
    size = torch.stack([p.norm().double() for p in params.values()]).norm()
    if length == 0:
        with torch.no_grad():
            return torch.zeros_like(outputs_of(params))
    h = _STEP * torch.where(size > 0, size, torch.ones_like(size)) / length

    def at(sign: float) -> Tensor:
        moved = {
            name: p.double() + sign * h * tangents[name].double() for name, p in params.items()
        }
        return outputs_of(moved)

    with torch.no_grad():
        return ((at(1.0) - at(-1.0)) / (2 * h)).to(next(iter(params.values())).dtype)
