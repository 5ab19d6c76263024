"""BatchNorm against what training mode computes, by torch itself, and against closed forms."""

import copy

import pytest
import torch
from jacobian.models import ImageNet, gap
from jacobian.snapshots import assert_same, state_of
from torch import nn

from ntkwatch.jacobian.batchnorm import (
    batch_statistics,
    moving_batchnorms,
    probe_statistics,
)
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.norm_matching import norm_matched
from ntkwatch.jacobian.undisturbed import undisturbed

from oracles import dense_ntk


class Twice(nn.Module):
    """Convolutions that feed batch norms in every way that matters to rescaling."""

    def __init__(self):
        super().__init__()
        self.plain, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.biased, self.after = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.late, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(self.norm(self.plain(x)))
        x = self.act(self.after(self.biased(x)))
        x = self.last(self.act(self.late(x)))  # bias and ReLU stand between
        return self.head(x.mean(dim=(2, 3)))


def _trained(build=Twice):
    """With running statistics that are not those of any batch to come."""
    model = build().train()
    with torch.no_grad():
        for _ in range(3):
            model(3 + 2 * torch.randn(16, 3, 8, 8))
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def _x(n=12):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64)


def _training_outputs(model, x):
    """What training mode computes, on a copy."""
    return copy.deepcopy(model).double().train()(x).detach()


def test_probe_statistics_in_evaluation_mode_give_the_outputs_of_training_mode():
    model, x = _trained(), _x()
    before = state_of(model)
    with undisturbed(model):
        function = ModelFunction(model, dtype=torch.float64)
        statistics = probe_statistics(function, x, ["norm", "after", "last"])
        with torch.no_grad():
            found = function({}, x, statistics)
    assert_same(before, state_of(model))
    assert sorted(statistics) == sorted(
        f"{name}.running_{kind}" for name in ("norm", "after", "last") for kind in ("mean", "var")
    )
    torch.testing.assert_close(found, _training_outputs(model, x), rtol=1e-10, atol=1e-10)
    assert gap(found, copy.deepcopy(model).double().eval()(x).detach()) > 0.1


def test_batch_statistics_give_the_outputs_of_training_mode_and_touch_no_buffer():
    model, x = _trained(), _x()
    before = state_of(model)
    with undisturbed(model):
        function = ModelFunction(model, dtype=torch.float64)
        with batch_statistics(model, ["norm", "after", "last"]), torch.no_grad():
            found = function({}, x)
            assert not model.act.training
    assert_same(before, state_of(model))
    torch.testing.assert_close(found, _training_outputs(model, x), rtol=1e-10, atol=1e-10)


def test_batch_statistics_leave_the_model_alone_even_called_directly_and_after_an_error():
    model, x = _trained().eval(), _x().float()
    before = state_of(model)

    def fails():
        with batch_statistics(model, ["norm", "after", "last"]):
            model(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert_same(before, state_of(model))
    assert model.norm.track_running_stats


def test_only_the_named_batchnorms_see_the_batch():
    model, x = _trained().eval(), _x()
    frozen = copy.deepcopy(model).double()
    frozen.after.train()
    expected = frozen(x).detach()
    with undisturbed(model), batch_statistics(model, ["after"]), torch.no_grad():
        found = ModelFunction(model, dtype=torch.float64)({}, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_batchnorm_that_training_keeps_in_evaluation_mode_does_not_move():
    model = _trained()
    assert moving_batchnorms(model) == ["norm", "after", "last"]
    model.norm.eval()
    assert moving_batchnorms(model) == ["after", "last"]
    model.eval()
    # All in evaluation mode says nothing about training.
    assert moving_batchnorms(model) == ["norm", "after", "last"]
    bare = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert moving_batchnorms(bare) == []
    assert moving_batchnorms(nn.BatchNorm1d(3)) == [""]
    # Its training mode sees the batch, and evaluation mode the buffers that it keeps all the same.
    switched = nn.BatchNorm1d(3)
    switched.track_running_stats = False
    assert moving_batchnorms(switched) == [""]


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probe_kernel_holds_the_statistics_of_the_probe(engine, dtype):
    """The oracle writes them into the buffers of a copy and differentiates that in plain torch."""
    model, x = _trained(ImageNet), _x()
    norm, written = model.body[1], copy.deepcopy(model).double().eval()
    features = written.body[0](x).detach()
    written.body[1].running_mean.copy_(features.mean(dim=(0, 2, 3)))
    written.body[1].running_var.copy_(features.var(dim=(0, 2, 3), correction=0))
    expected, running = dense_ntk(written, x), dense_ntk(copy.deepcopy(model).eval(), x)
    before = state_of(model)
    kernel = empirical_ntk(model, x, batchnorm="probe", engine=engine, dtype=dtype)
    assert_same(before, state_of(model))
    assert gap(kernel.matrix, expected) < (1e-12 if dtype is torch.float64 else 5e-6)
    assert kernel.spec.batchnorm == "probe"
    plain = empirical_ntk(model, x, engine=engine, dtype=dtype)
    assert gap(plain.matrix, running) < (1e-12 if dtype is torch.float64 else 5e-6)
    assert plain.spec.batchnorm == "running"
    assert gap(expected, running) > 0.1
    norm.eval()
    frozen = empirical_ntk(model, x, batchnorm="probe", dtype=torch.float64)
    assert gap(frozen.matrix, running) < 1e-12
    assert frozen.spec.batchnorm == "running"


def test_a_model_without_batchnorm_says_so():
    assert empirical_ntk(nn.Linear(4, 2), torch.randn(3, 4)).spec.batchnorm == "none"


def test_a_batchnorm_that_is_called_twice_has_no_single_statistics():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.norm(x) * 2)

    function = ModelFunction(Again(), dtype=torch.float64)
    assert probe_statistics(function, torch.randn(5, 4, dtype=torch.float64), ["norm"]) == {}


# Norms that the batch function does not see. ------------------------------------------------------


def _matched(model, x, reference):
    with undisturbed(model):
        function = ModelFunction(model, dtype=torch.float64)
        names = moving_batchnorms(model)
        with batch_statistics(model, names), torch.no_grad():
            before = function({}, x)
        found = norm_matched(function, x, names, reference)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        with batch_statistics(model, names), torch.no_grad():
            after = function(found, x)
    assert gap(after, before) < 1e-3  # the function is the same
    return found


def _params(model):
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def test_weights_that_feed_a_batchnorm_get_their_reference_norm_back():
    model, x = _trained(), _x()
    reference = _params(model)
    with torch.no_grad():
        model.plain.weight *= 0.8
        model.biased.weight *= torch.tensor([0.5, 1.0, 2.0, 3.0]).view(4, 1, 1, 1)
        model.head.weight *= 0.7
    present, found = _params(model), _matched(model, x, reference)
    for name in ("plain.weight", "biased.weight"):
        torch.testing.assert_close(found[name], reference[name], rtol=1e-6, atol=1e-6)
    changed = {name for name in present if not torch.equal(found[name], present[name])}
    assert changed == {"plain.weight", "biased.weight"}
    assert found.keys() == present.keys()


def test_a_weight_behind_a_bias_and_an_activation_in_place_is_as_it_was():
    """The batch norm is given the very tensor that the convolution gave, written to by the ReLU."""
    model, x = _trained(), _x()
    reference = _params(model)
    with torch.no_grad():
        model.late.weight *= 0.8
    present, found = _params(model), _matched(model, x, reference)
    torch.testing.assert_close(found["late.weight"], present["late.weight"], rtol=0, atol=0)


def test_a_weight_whose_output_is_used_elsewhere_is_as_it_was_and_others_are_rescaled():
    class Skips(Twice):
        def forward(self, x):
            h = self.biased(self.norm(self.plain(x)))
            return self.head((self.after(h) + h).mean(dim=(2, 3)))

    model, x = _trained(Skips), _x()
    reference = _params(model)
    with torch.no_grad():
        model.plain.weight *= 0.8
        model.biased.weight *= 0.8
    present, found = _params(model), _matched(model, x, reference)
    torch.testing.assert_close(
        found["plain.weight"], reference["plain.weight"], rtol=1e-6, atol=1e-6
    )
    assert torch.equal(found["biased.weight"], present["biased.weight"])


def test_a_weight_that_has_turned_keeps_its_direction_and_takes_the_norm():
    model, x = _trained(), _x()
    reference = _params(model)
    with torch.no_grad():
        model.plain.weight += 0.3 * torch.randn_like(model.plain.weight)
    present, found = _params(model)["plain.weight"], _matched(model, x, reference)["plain.weight"]
    sizes = (w.flatten(1).norm(dim=1) for w in (found, reference["plain.weight"]))
    torch.testing.assert_close(*sizes)
    cosine = nn.functional.cosine_similarity(found.flatten(1), present.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_channel_that_is_zero_stays_zero():
    model, x = _trained(), _x()
    reference = _params(model)
    with torch.no_grad():
        model.plain.weight[1] = 0
        model.plain.weight *= 0.8
    found = _matched(model, x, reference)["plain.weight"]
    assert not found[1].any()
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], reference["plain.weight"][0], rtol=1e-6, atol=1e-6)


def test_nothing_is_rescaled_for_a_batchnorm_on_running_statistics():
    """On running statistics the function sees the norm of the weights that feed it."""
    model, x = _trained().eval(), _x()
    reference = _params(model)
    with torch.no_grad():
        model.plain.weight *= 0.8
    with undisturbed(model):
        function = ModelFunction(model, dtype=torch.float64)
        found = norm_matched(function, x, [], reference)
    assert all(torch.equal(found[name], p) for name, p in _params(model).items())
