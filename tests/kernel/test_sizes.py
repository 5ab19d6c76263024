"""Sizes of large tensors, taken piece by piece; oracle: numpy on the whole, in double precision."""

import numpy as np
import pytest
import torch

from ntkwatch.kernel import sizes
from ntkwatch.kernel.sizes import squared_norm

KINDS = {
    "float32": lambda g: torch.randn(37, 29, generator=g),
    "float64": lambda g: torch.randn(37, 29, generator=g, dtype=torch.float64),
    "bfloat16": lambda g: torch.randn(37, 29, generator=g).bfloat16(),
    "complex": lambda g: torch.randn(37, 29, generator=g, dtype=torch.complex64),
    "other order in memory": lambda g: torch.randn(5, 4, 3, 2, generator=g).permute(0, 3, 1, 2),
    "one number": lambda g: torch.randn((), generator=g),
    "empty": lambda g: torch.randn(0, 3, generator=g),
}


@pytest.mark.parametrize("entries", [10, 2**18], ids=["in pieces", "at once"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_numpys_in_pieces_and_at_once(monkeypatch, kind, entries):
    monkeypatch.setitem(sizes._ENTRIES, "cpu", entries)
    generator = torch.Generator().manual_seed(0)
    a, b = (KINDS[kind](generator) for _ in range(2))

    def exact(tensor):
        wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
        return float((np.abs(wide.numpy()) ** 2).sum())

    for found, expected in ((squared_norm(a), exact(a)), (squared_norm(a, minus=b), exact(a - b))):
        assert found.shape == ()
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(expected, rel=1e-6 if a.is_complex() else 1e-12)


def test_small_numbers_do_not_vanish_beside_a_large_one():
    """In single precision 1 is nothing beside 1e8."""
    a = torch.cat([torch.tensor([1e4]), torch.ones(2**19)])
    assert float(squared_norm(a)) == 1e8 + 2**19
