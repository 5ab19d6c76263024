"""Models sharded by FSDP2 over two processes; oracle: plain autograd on the model held whole.

Both processes run ``sharded_worker`` once, and each test looks at what they saved.
"""

import pytest
import torch
from jacobian.models import gap
from jacobian.processes import results_of
from jacobian.sharded_models import MODELS, build

from ntkwatch.jacobian.parameters import layer_of

from oracles import dense_ntk

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PART = ("head.", "blocks.1.")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return results_of("jacobian.sharded_worker", tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def exact():
    """Kernels by parameter of the models held whole."""
    found = {}
    for kind in MODELS:
        model, x = build(kind)
        model.eval()
        names = [name for name, _ in model.named_parameters()]
        found[kind] = {name: dense_ntk(model, x, params=[name]) for name in names}
    return found


def _expected(parts, name):
    kernel = sum(part for n, part in parts.items() if name != "part" or n.startswith(PART))
    if name == "trace":
        return torch.einsum("nmcc->nm", kernel)
    if name == "cross":
        return kernel[:3, 2:]
    return kernel[:1, :1] if name == "single" else kernel


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_the_kernel_of_a_sharded_model_is_that_of_the_whole_one(both, exact, kind, reshard):
    wanted = ["full", "cross", "small budget"]
    wanted += ["auto", "trace", "single", "part"] if reshard else []
    for saved in both:
        for name in wanted:
            matrix, _, coverage = saved["kernels"][kind, reshard, name]
            assert gap(matrix, _expected(exact[kind], name)) < 1e-12, name
            names = [n for n in exact[kind] if name != "part" or n.startswith(PART)]
            assert list(coverage) == names
            assert set(coverage.values()) == {"structured"}


@pytest.mark.parametrize("kind", MODELS)
def test_the_layers_of_a_sharded_model_are_those_of_the_whole_one(both, exact, kind):
    layers = {}
    for name, part in exact[kind].items():
        trace = torch.einsum("nmcc->nm", part)
        layers[layer_of(name)] = layers.get(layer_of(name), 0) + trace
    _, found, _ = both[0]["kernels"][kind, True, "full"]
    assert list(found) == list(layers)
    for layer, part in layers.items():
        assert gap(found[layer], part) < 1e-12, layer


@pytest.mark.parametrize("way", ["part", "groups", "mesh 1 x 2", "mesh 2 x 1", "offload"])
def test_a_model_has_the_same_kernel_however_it_is_sharded(both, exact, way):
    for saved in both:
        assert gap(saved["ways"][way], _expected(exact["transformer"], "full")) < 1e-12


@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_compiled_blocks_stay_compiled_and_their_kernel_is_exact(both, exact, way):
    for saved in both:
        matrix, names, (first, second, third, measured, after) = saved["compiled"][way]
        assert gap(matrix, _expected(exact["transformer"], "full")) < 1e-12
        assert names == list(exact["transformer"])
        assert first == 2
        assert (second, third, measured, after) == (4, 6, 6, 8)


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        ("zero head", 1e-12),
        ("running", 1e-12),
        ("probe", 1e-12),
        ("frozen", 1e-12),
        ("float32", 1e-5),
    ],
)
def test_every_kind_of_kernel_is_that_of_the_model_held_whole(both, what, allowed):
    for saved in both:
        assert gap(saved["others"][False][what], saved["others"][True][what]) < allowed


def test_a_kernel_of_zeros_is_told_from_a_model_that_is_not_connected(both):
    for saved in both:
        assert not saved["others"][False]["zeros"].any()
        kind, message = saved["refusals"]["detached"]
        assert kind == "OutputError"
        assert "do not depend on any of its parameters" in message


def test_the_plan_of_a_sharded_model_is_that_of_the_model_held_whole(both):
    for saved in both:
        assert saved["others"][False]["plan"] == saved["others"][True]["plan"]


def test_a_measurement_leaves_shards_gradients_hooks_and_modes_as_found(both):
    for saved in both:
        for where, kept in saved["state"].items():
            assert all(kept.values()), (where, kept)


def test_a_watched_training_ends_in_the_same_weights_bit_for_bit(both):
    for saved in both:
        for how, (watched, alone) in saved["trainings"].items():
            for name, weight in alone.items():
                assert torch.equal(watched[name], weight), (how, name)


def test_no_more_is_gathered_at_once_than_in_a_training_step(both):
    for saved in both:
        training, measuring, afterwards, whole = saved["gathered"]
        assert measuring <= training < whole
        assert afterwards == 0


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("vmap", "CoverageError", "engine='vmap' holds gradients of all parameters at once"),
        ("loop", "CoverageError", "engine='loop' holds gradients of all parameters at once"),
        ("batch statistics", "CoverageError", "batchnorm='batch' holds gradients of all"),
        ("dtype", "InputError", "the Jacobian is wanted in torch.float32 and blocks.0.weight"),
        ("inputs", "InputError", "the inputs are torch.float32 and the parameters"),
        ("own inputs", "InputError", "were given different inputs"),
        ("own number", "InputError", "were given different inputs"),
        ("half", "InputError", "is torch.bfloat16; sharded parameters are used as they are"),
        ("mixed precision", "CoverageError", r"to torch.float32 (MixedPrecisionPolicy)"),
        ("Centred", "SampleCouplingError", "mixes samples"),
        ("Writes", "ModelChangedError", "writes to 1 of its own parameters"),
    ],
)
def test_what_cannot_be_measured_from_shards_is_refused(both, what, kind, words):
    for saved in both:
        found, message = saved["refusals"][what]
        assert found == kind, message
        assert words in message


def test_a_parameter_that_no_forward_pass_gathered_is_never_left_out_in_silence(both):
    for saved in both:
        kind, message = saved["unseen"]
        assert kind == "CoverageError"
        assert "that no forward pass of its modules gathered" in message


def test_every_process_stops_where_the_shard_of_one_is_not_a_number(both):
    for saved in both:
        kind, message = saved["not a number"]
        assert kind == "DivergedError"
        assert "(head.weight)" in message


def test_training_goes_on_bit_for_bit_after_a_measurement_that_failed(both):
    for saved in both:
        kinds = []
        for (kind, _), failed, alone in saved["after a failure"]:
            kinds.append(kind)
            assert all(torch.equal(failed[name], alone[name]) for name in alone)
        assert kinds == ["ForwardError", "CoverageError"]


def test_a_part_that_is_measured_first_does_not_become_the_root(both):
    model, x = build("perceptron")
    model.eval()

    def part(model, x):
        return model.blocks[1](torch.tanh(model.blocks[0](x)))

    names = [f"blocks.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    for parts, afterwards in (saved["a part first"] for saved in both):
        assert gap(parts, dense_ntk(model, x, part, params=names)) < 1e-12
        assert afterwards == 0
