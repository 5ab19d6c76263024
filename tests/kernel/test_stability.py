"""Sharpness against autograd Hessians of torch's losses; stable rates against torch's SGD."""

from inspect import unwrap  # past --typecheck, which would refuse before us

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, KernelMismatchError, NonFiniteError
from ntkwatch.kernel.descent import SGD
from ntkwatch.kernel.gram import trace_kernel, unflatten_kernel
from ntkwatch.kernel.stability import (
    edge_of_stability,
    max_stable_lr,
    sharpness,
    sharpness_bracket,
)

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}
N, C, P = 5, 3, 20

LOSSES = {
    "half-square-sum": lambda f, y: 0.5 * (f - y.softmax(dim=1)).square().sum(),
    "square-sum": lambda f, y: torch.nn.functional.mse_loss(f, y, reduction="sum"),
    "square-mean": torch.nn.functional.mse_loss,
    "cross-entropy-sum": lambda f, y: torch.nn.functional.cross_entropy(
        f, y.softmax(dim=1), reduction="sum"
    ),
    "cross-entropy-mean": lambda f, y: torch.nn.functional.cross_entropy(f, y.softmax(dim=1)),
}


def _linear_model(seed: int, n: int = N, c: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs ``J theta`` with a random Jacobian (row i C + a), and targets."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(n * c, P, generator=generator, **f64)
    return jacobian, torch.randn(n, c, generator=generator, **f64)


def _kernel(jacobian: torch.Tensor, c: int = C) -> torch.Tensor:
    return unflatten_kernel(jacobian @ jacobian.T, (c, c))


def _true_sharpness(jacobian, targets, loss, theta) -> float:
    """Largest eigenvalue of the Hessian of the loss in the parameters, by autograd."""
    shape = targets.shape
    hessian = torch.autograd.functional.hessian(
        lambda theta: LOSSES[loss]((jacobian @ theta).reshape(shape), targets), theta
    )
    return float(torch.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_sharpness_is_the_top_eigenvalue_of_the_hessian_of_a_linear_model(loss, seed):
    jacobian, targets = _linear_model(seed)
    theta = torch.randn(P, generator=torch.Generator().manual_seed(seed + 9), **f64) / 3
    p = (jacobian @ theta).reshape(N, C).softmax(dim=1)
    found = sharpness(
        _kernel(jacobian), loss=loss, probabilities=p if loss.startswith("cross") else None
    )
    assert found.item() == pytest.approx(_true_sharpness(jacobian, targets, loss, theta), rel=1e-10)


@law
@given(seed=st.integers(0, 1000), size=st.floats(0, 5))
def test_without_probabilities_cross_entropy_is_bounded_for_all_logits(seed, size):
    jacobian, _ = _linear_model(seed)
    logits = size * torch.randn(N, C, generator=torch.Generator().manual_seed(seed), **f64)
    exact = sharpness(
        _kernel(jacobian), loss="cross-entropy-mean", probabilities=logits.softmax(dim=1)
    )
    assert exact <= sharpness(_kernel(jacobian), loss="cross-entropy-mean") * (1 + 1e-12)


def test_the_bound_for_cross_entropy_is_reached_by_two_equal_classes():
    """One sample, ``p = (1/2, 1/2)``, gradients of opposite sign: the factor is exactly 1/2."""
    kernel = _kernel(torch.tensor([[1.0], [-1.0]], **f64), 2)
    half = torch.full((1, 2), 0.5, **f64)
    bound = sharpness(kernel, loss="cross-entropy-sum")
    assert bound.item() == pytest.approx(1)
    exact = sharpness(kernel, loss="cross-entropy-sum", probabilities=half)
    assert exact.item() == pytest.approx(1, rel=1e-14)


def test_uniform_probabilities_have_the_factor_one_over_c_across_the_ones():
    """``Q = (I - 11'/C) / C``: for ``K = k x I`` the sharpness is ``lambda_max(k) / C``."""
    k = torch.randn(N, P, **f64)
    k = k @ k.T
    kernel = k[:, :, None, None] * torch.eye(C, **f64)
    p = torch.full((N, C), 1 / C, **f64)
    found = sharpness(kernel, loss="cross-entropy-sum", probabilities=p)
    assert found.item() == pytest.approx(float(torch.linalg.eigvalsh(k)[-1]) / C, rel=1e-12)


def test_sure_probabilities_leave_no_curvature():
    p = torch.zeros(N, C, **f64)
    p[:, 1] = 1
    found = sharpness(_kernel(_linear_model(0)[0]), loss="cross-entropy-mean", probabilities=p)
    assert 0 <= found < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_a_part_of_the_samples_stands_for_all_of_them(loss):
    """All samples three times over: a third of them gives the sharpness of the whole."""
    jacobian, _ = _linear_model(0)
    whole = sharpness(_kernel(jacobian.repeat(3, 1)), loss=loss)
    part = sharpness(_kernel(jacobian), loss=loss, samples=3 * N)
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=st.integers(0, 1000))
def test_the_trace_kernel_brackets_the_sharpness(loss, seed):
    jacobian, logits = _linear_model(seed)
    kernel = _kernel(jacobian)
    p = logits.softmax(dim=1) if loss.startswith("cross") else None
    exact = sharpness(kernel, loss=loss, probabilities=p, samples=2 * N)
    low, high = sharpness_bracket(trace_kernel(kernel), outputs=C, loss=loss, samples=2 * N)
    assert low <= exact * (1 + 1e-12)
    assert exact <= high * (1 + 1e-12)


def test_both_ends_of_the_bracket_are_reached():
    """Left: ``K = k x I``. Right: one direction, in which each output has a sample of its own."""
    k = torch.randn(N, P, **f64)
    kernel = (k @ k.T)[:, :, None, None] * torch.eye(C, **f64)
    low, _ = sharpness_bracket(trace_kernel(kernel), outputs=C, loss="half-square-sum")
    torch.testing.assert_close(low, sharpness(kernel, loss="half-square-sum"))
    column = torch.eye(C, **f64).reshape(-1, 1)
    kernel = _kernel(column)
    _, high = sharpness_bracket(trace_kernel(kernel), outputs=C, loss="half-square-sum")
    assert high.item() == pytest.approx(C)
    torch.testing.assert_close(high, sharpness(kernel, loss="half-square-sum"))


@pytest.mark.parametrize("loss", ["half-square-sum", "square-sum", "square-mean"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=str,
)
def test_torch_trains_a_linear_model_below_the_stable_rate_and_not_above(loss, options):
    jacobian, targets = _linear_model(0)
    edge = max_stable_lr(sharpness(_kernel(jacobian), loss=loss), sgd=SGD(**options))
    final = {}
    for share in (0.97, 1.03):
        theta = torch.zeros(P, requires_grad=True, **f64)
        optimizer = torch.optim.SGD([theta], lr=share * float(edge), **options)
        for _ in range(1500):
            optimizer.zero_grad()
            value = LOSSES[loss]((jacobian @ theta).reshape(N, C), targets)
            value.backward()
            optimizer.step()
        final[share] = float(value.detach() / LOSSES[loss](torch.zeros(N, C, **f64), targets))
    assert final[0.97] < 1e-3
    assert final[1.03] > 1e3


def test_the_edge_of_stability_is_the_share_of_the_stable_rate():
    top = torch.tensor(8.0, **f64)
    assert max_stable_lr(top).item() == 0.25
    assert edge_of_stability(0.25, top).item() == 1
    assert edge_of_stability(0.1, top).item() == pytest.approx(0.4)
    assert edge_of_stability(0.1, top, sgd=SGD(momentum=0.6)).item() == pytest.approx(0.25)
    assert edge_of_stability(0.1, torch.zeros((), **f64)).item() == 0


def test_losses_probabilities_and_kernels_that_make_no_sense_are_refused():
    kernel = _kernel(_linear_model(0)[0])
    with pytest.raises(InputError, match="loss='hinge' is not known"):
        unwrap(sharpness)(kernel, loss="hinge")
    with pytest.raises(InputError, match="loss='hinge' is not known"):
        unwrap(sharpness_bracket)(trace_kernel(kernel), outputs=C, loss="hinge")
    with pytest.raises(InputError, match="said to be over 4 samples and the kernel holds 5"):
        sharpness(kernel, loss="square-sum", samples=4)
    with pytest.raises(KernelMismatchError, match=r"5 samples with 3 outputs .* \(5, 2\)"):
        unwrap(sharpness)(
            kernel, loss="cross-entropy-mean", probabilities=torch.full((5, 2), 0.5, **f64)
        )
    logits = torch.linspace(-1, 1, 15, **f64).reshape(5, 3)
    with pytest.raises(InputError, match=r"lie in \[-1, 1\]"):
        sharpness(kernel, loss="cross-entropy-mean", probabilities=logits)
    with pytest.raises(InputError, match="do not all add up to 1"):
        sharpness(kernel, loss="cross-entropy-mean", probabilities=torch.full((5, 3), 0.5, **f64))
    with pytest.raises(NonFiniteError):
        sharpness(kernel * torch.nan, loss="square-mean")
    with pytest.raises(NonFiniteError):
        sharpness_bracket(trace_kernel(kernel) * torch.nan, outputs=C, loss="square-mean")
