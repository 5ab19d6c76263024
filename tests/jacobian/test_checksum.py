"""A checksum shows every change of a model's memory; oracle: the tensors' own bytes, copied before.

Each change below is one that torch does not count: made through numpy, or on a view of ``.data``.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ntkwatch.jacobian.checksum import _CHUNK, Checksum, _in_memory_order


def _flip(tensor, place, bit):
    """Flip one bit of one byte in the tensor's own memory."""
    real = torch.view_as_real(tensor.data) if tensor.is_complex() else tensor.data
    real.reshape(-1).view(torch.uint8)[place] ^= 1 << bit


def _holder(**tensors):
    model = nn.Module()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            model.register_parameter(name, nn.Parameter(tensor))
        else:
            model.register_buffer(name, tensor)
    return model


KINDS = {
    "float32": lambda: torch.randn(5, 4),
    "float64": lambda: torch.randn(3, dtype=torch.float64),
    "bfloat16 of an odd size": lambda: torch.randn(7).bfloat16(),
    "one number": lambda: torch.randn(()),
    "complex": lambda: torch.randn(3, 3, dtype=torch.complex64),
    "a count": lambda: torch.tensor(3),
    "flags": lambda: torch.tensor([True, False, True]),
    "bytes": lambda: torch.arange(13, dtype=torch.uint8),
    "longer than a chunk": lambda: torch.zeros(2 * _CHUNK + 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_single_bit_shows(kind):
    torch.manual_seed(0)
    model = _holder(it=KINDS[kind](), other=torch.randn(4))
    tensor = dict([*model.named_parameters(), *model.named_buffers()])["it"]
    size = tensor.numel() * tensor.element_size()
    places = range(size) if size < 100 else [0, 7, 8, size // 2, 8 * _CHUNK, size - 1]
    if kind == "flags":  # other bits of a flag have no meaning
        places = [0, 2]
    for place in places:
        for bit in (0, 7) if kind != "flags" else (0,):
            checksum = Checksum(model)
            assert checksum.changed() == []
            _flip(tensor, place, bit)
            assert checksum.changed() == ["it"], (place, bit)


def test_changes_that_keep_every_sum_show():
    """Exchanges, rotations and equal and opposite changes leave a plain sum as it was."""
    torch.manual_seed(0)
    weight = torch.randn(6, 6)
    model = _holder(weight=weight.clone())
    changes = {
        "two entries": lambda a: a.__setitem__(([0, 3], [1, 2]), a[[3, 0], [2, 1]]),
        "two rows": lambda a: a.__setitem__([0, 1], a[[1, 0]]),
        "transposed": lambda a: a.__setitem__(slice(None), a.T.copy()),
        "rolled": lambda a: a.__setitem__(slice(None), np.roll(a, 1)),
        "sorted": lambda a: a.ravel().sort(),
        "negated": lambda a: np.negative(a, out=a),
        "opposite": lambda a: a.view(np.int32).__iadd__(
            np.resize(np.array([1, -1], dtype=np.int32), (6, 6))
        ),
    }
    for name, change in changes.items():
        model.weight.data.copy_(weight)
        checksum, version = Checksum(model), model.weight._version
        change(model.weight.detach().numpy())
        assert model.weight._version == version, "else torch would show it anyway"
        assert not torch.equal(model.weight, weight)
        assert checksum.changed() == ["weight"], name


def test_tensors_that_exchange_their_contents_show():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    checksum = Checksum(model)
    a, b = (layer.weight.detach().numpy() for layer in model)
    a[:], b[:] = b.copy(), a.copy()
    assert checksum.changed() == ["0.weight", "1.weight"]


@pytest.mark.parametrize("bits", [0x7FC00001, 0x80000000], ids=["another NaN", "minus zero"])
def test_numbers_that_compare_as_before_show_when_their_bits_differ(bits):
    start = torch.tensor([torch.nan if bits != 0x80000000 else 0.0, 1.0])
    model = _holder(weight=start)
    checksum = Checksum(model)
    model.weight.detach().numpy().view(np.uint32)[0] = bits
    assert checksum.changed() == ["weight"]


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1),
    "every second": lambda t: torch.randn(8, 3, 4, 4)[::2],
    "expanded": lambda t: torch.randn(4, 1, 4, 4).expand(4, 3, 4, 4),
    "off a word": lambda t: torch.randn(1 + t.numel())[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_lie_in_memory_as_they_like(layout):
    model = _holder(weight=LAYOUTS[layout](torch.randn(4, 3, 4, 4)))
    checksum = Checksum(model)
    assert checksum.changed() == []
    model.weight.detach().numpy()[-1, -1, -1, -1] += 1
    assert checksum.changed() == ["weight"]


@pytest.mark.parametrize("layout", ["channels last", "transposed"])
def test_what_lies_without_gaps_is_read_where_it_lies(layout):
    """A copy of every weight would double a model's memory."""
    tensor = LAYOUTS[layout](torch.randn(4, 3, 4, 4))
    assert _in_memory_order(tensor).data_ptr() == tensor.data_ptr()


def test_tensors_without_memory_of_their_own_are_left_out():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    model.register_buffer("thin", torch.eye(3).to_sparse())
    checksum = Checksum(model)
    assert checksum.changed() == []
    model[2].bias.detach().numpy()[:] = 7
    assert checksum.changed() == ["2.bias"]


def test_a_tensor_that_is_given_other_memory_shows_only_with_other_contents():
    model = nn.Linear(3, 3)
    checksum = Checksum(model)
    model.weight.data = model.weight.data.clone()
    assert checksum.changed() == []
    model.weight.data = torch.zeros(3, 4)
    assert checksum.changed() == ["weight"]


def test_what_a_copy_still_holds_is_put_back_and_nothing_else():
    model = nn.Linear(3, 3)
    stale = {"weight": model.weight.detach() + 1, "bias": model.bias.detach().clone()}
    checksum, bias = Checksum(model), model.bias.detach().clone()
    model.weight.detach().numpy()[0] = 9
    model.bias.detach().numpy()[0] = 9
    assert checksum.put_back(stale, {"bias": torch.zeros(2)}) == ["weight"]
    assert torch.equal(model.bias, bias)
    assert bool((model.weight[0] == 9).all())


class _Waits(TorchDispatchMode):
    """Counts the reads of a number, each of which would wait for an accelerator."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_comparing_waits_for_the_device_once_and_taking_never():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
    with _Waits() as waits:
        checksum = Checksum(model)
        assert waits.reads == 0
        checksum.changed()
        assert waits.reads == 1


def test_nothing_is_drawn_from_a_stream_of_the_run():
    model, before = nn.Linear(5, 5), torch.get_rng_state()
    Checksum(model).changed()
    assert torch.equal(before, torch.get_rng_state())
