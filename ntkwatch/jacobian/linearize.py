"""``J v``: how the outputs would change if the network were linear in its parameters.

Forward mode where every operation has it, the double-vjp trick where not, and a central difference
where neither works. ``product`` checks forward mode against reverse mode, since the two disagree
silently in places (the padding row of an embedding); who takes many products checks some of them.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.functional import Params, real_entries
from ntkwatch.jacobian.inputs import dense, to_dtype

__all__ = [
    "EXACT",
    "Linearized",
    "OutputsOf",
    "jacobian_vector_product",
    "linearized_outputs",
    "unchecked_product",
]

OutputsOf = Callable[[Params], Tensor]

# What torch raises for an operation without a derivative of the kind asked for.
_CANNOT = (RuntimeError, NotImplementedError, TypeError, ValueError)
_STEP = 1e-4  # of the central difference, relative to the parameters' norm; squared it is 1e-8
# Rounding units that two orders of the same arithmetic may be apart; ten times as many where there
# is no float64 to look again.
_ROUNDING = 1e3
_DIFFERENCE = 0.02  # a difference across kinks may be off by this share and still tell


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
    rounding = _ROUNDING if in_float64 is not None else 10 * _ROUNDING
    # Fused attention has no forward mode and no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        for method, compute in EXACT.items():
            try:
                change = _checked(compute, outputs_of, params, tangents, rounding)
                if change is None and in_float64 is not None:  # perhaps it was rounding
                    wide = in_float64(), _double(params), _double(tangents)
                    change = _checked(compute, *wide, rounding)
                if change is not None:
                    return Linearized(change.to(_real_dtype(params)), method)
                failures.append(f"{method}: disagrees with reverse mode")
            except _CANNOT as error:
                failures.append(f"{method}: {type(error).__name__}: {first_line(error)}")
    try:
        change = _checked_difference(outputs_of, params, tangents, in_float64)
    except _CANNOT as error:
        failures.append(f"finite-difference: {type(error).__name__}: {first_line(error)}")
        change = None
    else:
        failures.append("finite-difference: disagrees with reverse mode")
    if change is None:
        raise CoverageError(
            "the model could not be linearized, so there is no linearization error: "
            f"{'; '.join(failures)}. Pass forward= to watch a part of the model that autograd can "
            "differentiate."
        )
    return Linearized(change.to(_real_dtype(params)), "finite-difference")


def unchecked_product(
    method: str, outputs_of: OutputsOf, params: Params, tangents: Params
) -> Tensor:
    """Return ``J(theta) v`` by a method that was checked on another direction: a third of the work.

    Args:
        method: "jvp" or "double-vjp".
        outputs_of: The outputs as a function of parameters.
        params: Where to differentiate.
        tangents: Direction.

    Returns:
        The derivative, of the shape of the outputs.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return EXACT[method](outputs_of, params, tangents)


def linearized_outputs(
    method: str, outputs_of: OutputsOf, params: Params, tangents: Params
) -> Tensor:
    """Return ``f(theta) + J(theta) v``, differentiable in ``v`` and not in ``theta``.

    Args:
        method: "jvp" or "double-vjp", as ``jacobian_vector_product`` found it.
        outputs_of: The outputs as a function of parameters.
        params: Where to linearize.
        tangents: ``v``, which may require gradients.

    Returns:
        The outputs of the linearized model.
    """
    with sdpa_kernel(SDPBackend.MATH):
        outputs, change = _IN_GRAPH[method](outputs_of, params, tangents)
    return outputs.detach() + change


def _checked(
    compute: Callable[[OutputsOf, Params, Params], Tensor],
    outputs_of: OutputsOf,
    params: Params,
    tangents: Params,
    rounding: float,
) -> Tensor | None:
    """The product, or None if reverse mode says otherwise."""
    change = compute(outputs_of, params, tangents)
    allowed = rounding * torch.finfo(change.dtype).eps
    return change if _gap_to_reverse(outputs_of, params, tangents, change) <= allowed else None


def _checked_difference(
    outputs_of: OutputsOf,
    params: Params,
    tangents: Params,
    in_float64: Callable[[], OutputsOf] | None,
) -> Tensor | None:
    """A central difference, or None if there is a reverse mode and it says otherwise."""
    if in_float64 is not None:
        outputs_of, params, tangents = in_float64(), _double(params), _double(tangents)
    change = _central_difference(outputs_of, params, tangents)
    try:
        gap = _gap_to_reverse(outputs_of, params, tangents, change)
    except _CANNOT:
        return change
    return change if gap <= _DIFFERENCE else None


def _dual(outputs_of: OutputsOf, params: Params, tangents: Params) -> tuple[Tensor, Tensor]:
    """Outputs and ``J v`` in one forward pass, in the graph of ``v``."""
    with warnings.catch_warnings():
        # Forward mode imports torch's decompositions, which are scripted: torch's own affair.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        outputs, change, *_ = jvp(outputs_of, (params,), (tangents,))
    return outputs, change


def _pulled_twice(
    outputs_of: OutputsOf, params: Params, tangents: Params, *, create_graph: bool = True
) -> tuple[Tensor, Tensor]:
    """``J' u`` is linear in u, so its derivative by u along v is ``J v``."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    outputs = outputs_of(leaves)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(
        outputs, list(leaves.values()), u, create_graph=True, allow_unused=True
    )
    pairs = [(g, tangents[name]) for name, g in zip(leaves, pulled, strict=True) if g is not None]
    if not pairs:
        return outputs, torch.zeros_like(outputs).detach()
    (change,) = torch.autograd.grad(
        [g for g, _ in pairs], u, [v for _, v in pairs], create_graph=create_graph
    )
    return outputs.detach(), change


def _forward_mode(outputs_of: OutputsOf, params: Params, tangents: Params) -> Tensor:
    return _dual(outputs_of, params, tangents)[1].detach()


def _double_vjp(outputs_of: OutputsOf, params: Params, tangents: Params) -> Tensor:
    return _pulled_twice(outputs_of, params, tangents, create_graph=False)[1].detach()


# In the order in which they are tried.
EXACT = {"jvp": _forward_mode, "double-vjp": _double_vjp}
_IN_GRAPH = {"jvp": _dual, "double-vjp": _pulled_twice}


def _gap_to_reverse(
    outputs_of: OutputsOf, params: Params, tangents: Params, change: Tensor
) -> float:
    """Compare ``<u, J v>`` with ``<J' u, v>``, one number, for random ``u``: in units of both."""
    # A random u sees an error of J v at the size of the error, up to a factor of order 1; that two
    # of them are nearly orthogonal to it is unlikely.
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    outputs = outputs_of(leaves)
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for _ in range(2):
        u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
        u = u.to(outputs)
        terms = _terms_of_reverse(outputs, leaves, tangents, u) if outputs.requires_grad else {}
        sums, norms = zip((u.new_zeros(()), u.new_zeros(())), *terms.values(), strict=True)
        forward, reverse = (u * change).sum(), torch.stack(sums).sum()
        # Rounding errors of the terms add up like random numbers, so to the size of their norm.
        spread = torch.stack(norms).norm() + (u * change).norm()
        off = (forward - reverse).abs()
        gaps.append(torch.where(off == 0, off, off / (spread + reverse.abs())))
    return float(torch.stack(gaps).max())


def _terms_of_reverse(
    outputs: Tensor, leaves: Params, tangents: Params, u: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and norm of the terms of ``<J' u, v>``, by parameter."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def take_in(name: str, gradient: Tensor) -> Tensor | None:
        term = (real_entries(dense(gradient)) * real_entries(tangents[name])).detach()
        found[name] = term.sum(), term.norm()
        # Let go at once, since all gradients together are a copy of the model: torch keeps a zero.
        return None if gradient.is_sparse else gradient.new_zeros(()).expand(gradient.shape)

    hooks = [leaf.register_hook(partial(take_in, name)) for name, leaf in leaves.items()]
    try:
        torch.autograd.grad(outputs, list(leaves.values()), u, retain_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name in leaves if name in found}


def _central_difference(outputs_of: OutputsOf, params: Params, tangents: Params) -> Tensor:
    length = torch.stack([v.norm() for v in tangents.values()]).norm()
    size = torch.stack([p.norm() for p in params.values()]).norm()
    if length == 0:
        with torch.no_grad():
            return torch.zeros_like(outputs_of(params))
    h = _STEP * torch.where(size > 0, size, torch.ones_like(size)) / length

    def at(sign: float) -> Tensor:
        return outputs_of({name: p + sign * h * tangents[name] for name, p in params.items()})

    with torch.no_grad():
        return (at(1.0) - at(-1.0)) / (2 * h)


def _double(params: Params) -> Params:
    return {name: to_dtype(tensor, torch.float64) for name, tensor in params.items()}


def _real_dtype(params: Params) -> torch.dtype:
    first = next(iter(params.values()))
    return real_entries(first).dtype
