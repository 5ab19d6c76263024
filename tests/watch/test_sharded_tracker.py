"""A model sharded by FSDP2 over two processes, watched in training; oracle: the model held whole.

Both processes run ``sharded_worker`` once. Kernels, linearizations and distances are computed again
here by plain autograd, from the whole weights that the processes had at each step.
"""

import pytest
import torch
from jacobian.processes import results_of
from watch.sharded_worker import made

from oracles import dense_jacobian, dense_ntk, naive_relative_change

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

RUNS = [("perceptron", True), ("transformer", True), ("transformer", False), ("texts", True)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return results_of("watch.sharded_worker", tmp_path_factory.mktemp("sharded"))


def _at(kind, weights, buffers=None):
    model, x = made(kind)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(weights[name])
        for name, tensor in model.named_buffers():
            tensor.copy_((weights if buffers is None else buffers)[name])
    return model.double().eval(), x.double() if x.is_floating_point() else x


def _buffers(kind, state):
    return {name: state[name] for name, _ in made(kind)[0].named_buffers()}


def _expected(kind, weights, start):
    """Linearization error, displacement, and the norm of the start, by dense Jacobians."""
    weights, start = ({name: t.double() for name, t in w.items()} for w in (weights, start))
    model, x = _at(kind, start)
    names = [name for name, _ in model.named_parameters()]
    jacobian = dense_jacobian(model, x)
    with torch.no_grad():
        outputs = model(x)
        change = _at(kind, weights, start)[0](x) - outputs
    moved = {name: (weights[name] - start[name]).flatten() for name in names}
    linear = sum(jacobian[name] @ moved[name] for name in names)
    error = float((change - linear).norm() / change.norm())
    displacement = float(torch.cat(list(moved.values())).norm())
    return error, displacement, float(torch.cat([start[n].flatten() for n in names]).norm())


@pytest.mark.parametrize(("kind", "reshard"), RUNS)
def test_kernels_at_every_step_are_those_of_the_whole_weights(both, kind, reshard):
    # What each process holds in buffers of its own counts as the first one has it.
    _, buffers, *_ = both[0]["runs"][kind, reshard][0]
    for saved in both:
        looks, weights, *_ = saved["runs"][kind, reshard][0]
        for (_, _, matrix, layers), now, first in zip(looks, weights, buffers, strict=True):
            model, x = _at(kind, now, first)
            exact = dense_ntk(model, x)
            torch.testing.assert_close(matrix, exact, rtol=0, atol=1e-10 * float(exact.abs().max()))
            trace = torch.einsum("nmcc->nm", exact)
            total = torch.stack(list(layers.values())).sum(dim=0)
            torch.testing.assert_close(total, trace, rtol=0, atol=1e-10 * float(trace.abs().max()))


@pytest.mark.parametrize(("kind", "reshard"), RUNS)
def test_linearization_error_and_displacement_are_those_of_the_whole_weights(both, kind, reshard):
    for saved in both:
        looks, weights, *_ = saved["runs"][kind, reshard][0]
        for (seen, _, _, _), now in list(zip(looks, weights, strict=True))[1:]:
            error, moved, size = _expected(kind, now, weights[0])
            # The weight norm of the transformer's head has no forward mode.
            method = "vjp-rows" if kind == "transformer" else "jvp"
            assert seen["linearization_method"] == method, seen["left_out"]
            assert seen["linearization_error"] == pytest.approx(error, rel=1e-9)
            assert seen["displacement"] == pytest.approx(moved, rel=1e-10)
            assert seen["relative_displacement"] == pytest.approx(moved / size, rel=1e-10)
        warm = weights[2] | _buffers(kind, both[0]["runs"][kind, reshard][0][1][2])
        assert looks[3][1] == pytest.approx(_expected(kind, weights[3], warm)[0], rel=1e-9)


@pytest.mark.parametrize(("kind", "reshard"), RUNS)
def test_a_watched_training_ends_as_an_unwatched_one_bit_for_bit(both, kind, reshard):
    for saved in both:
        (_, *watched), (_, *alone) = saved["runs"][kind, reshard]
        assert torch.equal(watched[2], alone[2])
        for name, weight in alone[0][-1].items():
            assert torch.equal(watched[0][-1][name], weight), name
        assert all(torch.equal(a, b) for a, b in zip(watched[1], alone[1], strict=True))


def test_both_processes_see_the_same_numbers_though_their_buffers_differ(both):
    first, second = (saved["runs"]["texts", True][0] for saved in both)
    assert not torch.equal(first[1][-1]["seen"], second[1][-1]["seen"])
    for mine, yours in zip(first[0], second[0], strict=True):
        assert mine[0] == yours[0]
        assert torch.equal(mine[2], yours[2])


def test_the_noise_floor_is_rounding_and_not_zero(both):
    for saved in both:
        for run in saved["runs"].values():
            floor = run[0][0][0][0]["noise_floor"]
            assert 0 < floor["relative_kernel_change"] < 1e-13
            assert 0 < floor["output"] < 1e-13


def test_copies_of_shards_count_once(both):
    for saved in both:
        looks, weights = saved["ways"]["mesh 2 x 1"]
        error, moved, _ = _expected("perceptron", weights[-1], weights[0])
        assert looks[-1][0]["displacement"] == pytest.approx(moved, rel=1e-10)
        assert looks[-1][0]["linearization_error"] == pytest.approx(error, rel=1e-9)


def test_single_precision_is_measured_as_it_is(both):
    for saved in both:
        looks, weights = saved["ways"]["float32"]
        error, moved, _ = _expected("perceptron", weights[-1], weights[0])
        assert looks[-1][0]["displacement"] == pytest.approx(moved, rel=1e-5)
        assert looks[-1][0]["linearization_error"] == pytest.approx(error, rel=1e-2)


def test_a_fresh_probe_sees_the_reference_from_its_shards(both):
    for saved in both:
        looks, weights = saved["ways"]["fresh probes"]
        model, x = _at("perceptron", weights[0])
        there = x.roll(3, 0)
        now = _at("perceptron", weights[3])[0]
        exact = [torch.einsum("nmcc->nm", dense_ntk(m, there)).numpy() for m in (now, model)]
        wanted = naive_relative_change(*exact)
        assert looks[3][0]["relative_kernel_change"] == pytest.approx(wanted, rel=1e-9)


def test_no_process_gathers_the_model_to_look_at_it(both):
    for saved in both:
        training, looking, afterwards, whole = saved["gathered"]
        # The weights of a module or two, as in training, and the direction of as many.
        assert looking <= 2 * training < whole
        assert afterwards == 0


def test_training_goes_on_after_a_look_that_fails_at_other_weights(both):
    for saved in both:
        said, failed, alone = saved["after a failure"]
        assert said == "in the middle"
        assert all(torch.equal(failed[name], alone[name]) for name in alone)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("own probe", "InputError", "were given different inputs"),
        ("sketch", "CoverageError", "engine='sketch'"),
        ("vmap", "CoverageError", "engine='vmap' holds gradients of all parameters at once"),
    ],
)
def test_what_cannot_be_watched_from_shards_is_refused(both, what, kind, words):
    for saved in both:
        found, message = saved["refusals"][what]
        assert found == kind
        assert words in message


def test_batch_statistics_cost_the_linearization_error_alone(both):
    for saved in both:
        left_out = saved["refusals"]["normed"]
        assert "BatchNorms on batch statistics" in left_out["linearization_error"]
        assert "kernel" not in left_out
