"""The largest stable learning rate, in units of the user's own loss and optimizer.

Tensors in, tensors out: nothing here knows of models, steps or files. With outputs ``f`` a loss has
the curvature ``H = d^2 L / df^2``, and the parameters see ``J' H J``, whose non-zero eigenvalues
are those of the kernel between two square roots of ``H``. Half the sum of squares has ``H = I``;
torch's ``MSELoss`` has ``2 / (N C)``. Forget it and every rate here is off by that factor.

The Gauss-Newton part is all of the Hessian for a linearized model; for the network itself it leaves
out the curvature of ``f``, which is small near the end of training or under lazy training. None of
this holds for Adam, whose preconditioner changes the curvature.
"""

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.descent import PLAIN, SGD, SquareLoss, square_loss_curvature
from ntkwatch.kernel.gram import check_finite, flatten_kernel, widest_float

__all__ = [
    "Loss",
    "edge_of_stability",
    "max_stable_lr",
    "sharpness",
    "sharpness_bracket",
]

CrossEntropy: TypeAlias = Literal["cross-entropy-sum", "cross-entropy-mean"]
Loss: TypeAlias = SquareLoss | CrossEntropy


def sharpness(
    kernel: Float[Tensor, "n n c c"],
    *,
    loss: Loss,
    probabilities: Float[Tensor, "n c"] | None = None,
    samples: int | None = None,
) -> Float[Tensor, ""]:
    """Return ``lambda_max(H^1/2 K H^1/2)``, the largest Gauss-Newton curvature of the loss.

    Args:
        kernel: Full kernel of the samples that the loss is taken over, or of some of them.
        loss: As in ``square_loss_curvature``, or ``"cross-entropy-mean"`` (``CrossEntropyLoss()``,
            a mean over samples) or ``"cross-entropy-sum"``.
        probabilities: Softmax of the logits, for cross-entropy: the result is exact at these. None
            bounds it from above for all logits, since ``diag(p) - p p'`` is at most 1/2.
        samples: How many samples the loss is over, if more than the kernel holds. The largest
            eigenvalue grows about as N, which cancels in a mean and counts in a sum.

    Returns:
        A curvature in the unit of loss over squared parameters, at least 0. From few samples it is
        biased upward, so that a rate made from it is biased to the safe side.

    Raises:
        InputError: If the loss is unknown, or probabilities are not such.
        KernelMismatchError: If probabilities have another shape than the outputs.
        NonFiniteError: If the kernel holds NaN or infinity.

    Source:
        Kernel and Hessian: Jacot et al., NeurIPS 2018, arXiv:1806.07572. The bound: a variance of a
        unit vector's entry under p is at most a quarter of its squared range, which is at most 2.
    """
    check_finite(kernel)
    _check_loss(loss)
    n, _, c, _ = kernel.shape
    flat = flatten_kernel(kernel.to(widest_float(kernel.device)))
    scale = _scale(loss, n, c, samples)
    if not loss.startswith("cross-entropy"):
        return scale * _largest(flat)
    if probabilities is None:
        return scale * _largest(flat) / 2
    return scale * _largest(_between_roots(flat, probabilities, n, c))


def sharpness_bracket(
    trace_kernel: Float[Tensor, "n n"], *, outputs: int, loss: Loss, samples: int | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return bounds on ``sharpness`` where only the trace kernel ``S`` is at hand.

    ``lambda_max(S) / C <= lambda_max(K) <= min(C lambda_max(S), tr S)``. The left end holds where
    ``K = S/C`` times the identity over outputs: wide networks near initialization.

    Args:
        trace_kernel: ``S``, the sum over the C outputs.
        outputs: C.
        loss: As in ``sharpness``. For cross-entropy the lower end is 0, as it is for sure outputs.
        samples: As in ``sharpness``.

    Returns:
        Lower and upper bound in the unit of ``sharpness``.

    Raises:
        InputError: If the loss is unknown.
        NonFiniteError: If the kernel holds NaN or infinity.

    Source:
        Left: ``lambda_max`` is at least the mean over the C outputs of ``v' K_aa v``, and so of
        ``v' S v / C``. Right: for a positive semi-definite K the off-diagonal blocks are bounded by
        the diagonal ones, ``K <= C blockdiag(K_aa)``, and ``K_aa <= S``; no eigenvalue is above the
        trace.
    """
    check_finite(trace_kernel)
    _check_loss(loss)
    n = len(trace_kernel)
    wide = trace_kernel.to(widest_float(trace_kernel.device))
    scale = _scale(loss, n, outputs, samples)
    top = _largest(wide)
    above = torch.minimum(outputs * top, wide.diagonal().sum())
    if loss.startswith("cross-entropy"):
        return torch.zeros_like(top), scale * above / 2
    return scale * top / outputs, scale * above


def max_stable_lr(
    sharpness: Float[Tensor, ""],
    *,
    sgd: SGD = PLAIN,
) -> Float[Tensor, ""]:
    """Return the learning rate at which descent on the frozen kernel begins to diverge.

    ``2 / sharpness`` for plain SGD, ``2 (1 + beta) / sharpness`` for heavy ball with momentum
    ``beta``; see ``SGD.stable_product`` for dampening and Nesterov.

    Args:
        sharpness: From ``sharpness`` or a bound of it.
        sgd: Momentum, if any.

    Returns:
        A learning rate as ``torch.optim.SGD`` takes it; infinite for a zero sharpness. Between it
        and about twice it, wide networks jump to flatter weights instead of diverging.

    Source:
        The jump: Lewkowycz et al. 2020, arXiv:2003.02218. Momentum: derived in ``SGD``.
    """
    return sgd.stable_product / sharpness


def edge_of_stability(
    learning_rate: float,
    sharpness: Float[Tensor, ""],
    *,
    sgd: SGD = PLAIN,
) -> Float[Tensor, ""]:
    """Return ``eta / eta_max``: the share of the stable learning rate in use.

    Args:
        learning_rate: ``eta`` in use.
        sharpness: Of the present kernel, from ``sharpness``.
        sgd: Momentum, if any.

    Returns:
        A ratio without unit: below 1 stable, 1 the edge of stability, above 1 beyond it. Twice it
        is the usual ``eta lambda`` of plain gradient descent.

    Source:
        Cohen et al., ICLR 2021, arXiv:2103.00065: full-batch training of networks hovers at 1,
        which training with a constant kernel cannot do.
    """
    return learning_rate / max_stable_lr(sharpness, sgd=sgd)


def _check_loss(loss: str) -> None:
    known = [*get_args(SquareLoss), *get_args(CrossEntropy)]
    if loss not in known:
        raise InputError(
            f"loss={loss!r} is not known, so its curvature is not either. Give one of "
            f"{', '.join(known)}."
        )


def _scale(loss: Loss, probed: int, outputs: int, samples: int | None) -> float:
    """What the kernel's largest eigenvalue is multiplied by, the growth to all samples included."""
    if samples is not None and samples < probed:
        raise InputError(
            f"the loss is said to be over {samples} samples and the kernel holds {probed}. Give "
            "the number of samples that one step's loss adds up, or leave it out."
        )
    # The eigenvalue grows as N, and a mean divides by N again.
    grown = 1.0 if loss.endswith("mean") or samples is None else samples / probed
    if loss == "cross-entropy-sum":
        return grown
    if loss == "cross-entropy-mean":
        return 1.0 / probed
    return grown * square_loss_curvature(loss, samples=probed, outputs=outputs)


def _largest(flat: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((flat + flat.mT) / 2)[-1].clamp(min=0)


def _between_roots(flat: Tensor, probabilities: Tensor, n: int, c: int) -> Tensor:
    """``L' K L`` with ``L L' = diag(p) - p p'`` for each sample."""
    if probabilities.shape != (n, c):
        raise KernelMismatchError(
            f"the kernel is of {n} samples with {c} outputs and the probabilities are "
            f"{tuple(probabilities.shape)}, so they do not belong together. Give the softmax of "
            "the same samples' logits."
        )
    p = probabilities.to(flat)
    # Softmax in half precision adds up to 1 within a percent; logits do not.
    if not bool((p >= 0).all() & ((p.sum(dim=1) - 1).abs() <= 0.02).all()):
        raise InputError(
            f"the probabilities lie in [{p.min():.3g}, {p.max():.3g}] and do not all add up to 1, "
            "so they are no softmax. Give logits.softmax(dim=-1)."
        )
    # (D - p s')(D - s p') = diag(p) - p p' with s = sqrt(p), D = diag(s): a root without a solve.
    p = p / p.sum(dim=1, keepdim=True)
    s = p.sqrt()
    blocks = torch.diag_embed(s) - p[:, :, None] * s[:, None, :]
    kernel = flat.reshape(n, c, n, c)
    return torch.einsum("iab,iajd,jde->ibje", blocks, kernel, blocks).reshape(n * c, n * c)
