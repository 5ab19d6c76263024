"""Each refusal says what was seen, why that stops us and what to do."""

from inspect import unwrap  # past --typecheck, which would refuse before us

import pytest
import torch
from jacobian.models import MLP
from torch import nn

from ntkwatch.errors import ForwardError, InputError, NonFiniteError, OutputError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.problem import Problem


def _x():
    return torch.randn(4, 4)


def test_outputs_that_are_whole_numbers_are_refused():
    with pytest.raises(OutputError, match=r"outputs are torch.int64.*before any argmax"):
        empirical_ntk(MLP(), _x(), forward=lambda m, x: m(x).argmax(dim=1))


def test_complex_outputs_are_refused():
    with pytest.raises(OutputError, match=r"outputs are torch.complex64"):
        empirical_ntk(MLP(), _x(), forward=lambda m, x: torch.complex(m(x), m(x)))


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda m, x: m(x).sum(), r"\(\)"),
        (lambda m, x: m(x).mean(dim=0), r"\(3,\)"),
        (lambda m, x: m(x).mT, r"\(3, 4\)"),
    ],
)
def test_outputs_that_are_not_per_sample_are_refused(forward, shape):
    with pytest.raises(OutputError, match=rf"shape {shape} for a probe of 4 samples.*not a loss"):
        empirical_ntk(MLP(), _x(), forward=forward)


def test_a_return_value_without_outputs_is_refused():
    with pytest.raises(OutputError, match=r"returned a str in which no output tensor was found"):
        empirical_ntk(MLP(), _x(), forward=lambda *_: "nothing")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_are_counted(bad):
    x = _x()
    x[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"3 of the 12 outputs of Linear on the probe are NaN"):
        empirical_ntk(nn.Linear(4, 3), x)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(bad):
    model = MLP()
    with torch.no_grad():
        model[2].weight[0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 4 parameters hold NaN .* \(2\.weight\)"):
        empirical_ntk(model, _x())


def test_complex_weights_are_not_finite_if_their_imaginary_part_is_not():
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([complex(1, torch.nan)]))
    with pytest.raises(NonFiniteError, match="weight"):
        empirical_ntk(model, _x())


def test_a_kernel_that_overflows_is_refused():
    """Outputs of size 1e200 are finite in float64, and squares of their gradients are not."""
    x = torch.full((4, 4), 1e200, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"16 of the 16 entries of the kernel are NaN"):
        empirical_ntk(nn.Linear(4, 1).double(), x)


def test_second_inputs_with_outputs_of_another_shape_are_refused():
    class Tokens(MLP):
        def forward(self, x):
            return super().forward(x)[..., 0]

    with pytest.raises(InputError, match=r"on other= have shape \(4, 3\).*shape \(2,\) per"):
        empirical_ntk(Tokens(), torch.randn(4, 2, 4), other=torch.randn(4, 3, 4))


def test_second_inputs_without_a_tensor_are_refused():
    with pytest.raises(InputError, match="hold no tensor"):
        empirical_ntk(MLP(), _x(), other=[])


def test_a_full_kernel_that_cannot_be_held_is_refused_before_it_is_computed():
    """200 samples of 100 outputs: 200^2 x 100^2 numbers, twice, are 6 GiB."""
    with pytest.raises(InputError, match=r"200 x 200 samples with 100 outputs.* 6\.0 GiB.*trace"):
        empirical_ntk(MLP(100), torch.randn(200, 4))


def test_a_larger_budget_allows_a_larger_kernel():
    words = r"300 x 1 samples with 600 outputs each takes 1\.6 GiB and memory_budget is 0\.50 GiB"
    x = torch.randn(300, 4)
    with pytest.raises(InputError, match=words):
        empirical_ntk(MLP(600), x, other=x[:1], memory_budget="0.5GiB")


@pytest.mark.parametrize(
    "settings", [{"outputs": "trace"}, {"outputs": "random:3"}, {"memory_budget": "7GiB"}]
)
def test_what_can_be_held_is_not_refused(settings, monkeypatch):
    """That the computation begins is seen by its being cut short."""

    class BeginsError(Exception):
        pass

    def begin(*_, **__):
        raise BeginsError

    monkeypatch.setattr(Problem, "kernel", begin)
    with pytest.raises(BeginsError):
        empirical_ntk(MLP(100), torch.randn(200, 4), **settings)


@pytest.mark.parametrize("budget", ["lots", "-1GiB", ""])
def test_a_budget_that_is_no_size_is_refused(budget):
    with pytest.raises(InputError, match=r"memory_budget=.* is not a size"):
        empirical_ntk(MLP(), _x(), memory_budget=budget)


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(
        InputError, match=r"engine='fast' is not known.*auto, structured, vmap, loop"
    ):
        unwrap(empirical_ntk)(MLP(), _x(), engine="fast")


def test_an_unknown_batchnorm_mode_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"batchnorm='train' is not known.*running, probe"):
        unwrap(empirical_ntk)(MLP(), _x(), batchnorm="train")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_a_dtype_without_real_derivatives_is_refused(dtype):
    with pytest.raises(InputError, match=rf"dtype={dtype} has no real derivatives"):
        empirical_ntk(MLP(), _x(), dtype=dtype)


def test_a_model_that_cannot_run_in_the_wanted_dtype_says_how_it_failed():
    class Fixed(MLP):
        def __init__(self):
            super().__init__()
            self.table = torch.eye(4)

        def forward(self, x):
            return super().forward(x @ self.table)

    with pytest.raises(ForwardError, match=r"model\(inputs\): RuntimeError: expected.*same dtype"):
        empirical_ntk(Fixed(), _x(), dtype=torch.float64)
