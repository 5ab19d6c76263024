"""Every engine against plain autograd on every case: a model that is hard in one way.

The oracle is ``cases/reference.py``: ``torch.autograd.grad`` on a deep copy in float64, each sample
in a forward pass of its own.
"""

import pytest
import torch
from jacobian.cases.every import CASES
from jacobian.cases.reference import reference_of
from jacobian.models import gap

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk

# The engines under test, and per engine the cases that it refuses with the reason. A case that an
# engine is said to refuse must be refused.
ENGINES = ["vmap", "loop"]
REFUSED = {
    "vmap": {name: each.vmap for name, each in CASES.items() if each.vmap is not None},
    "loop": {},
}

# Looked at in every mode: as different from each other as they come.
DIVERSE = [
    "tokens through dense layers",
]


# Torch tells once that an even kernel needs uneven padding.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def _marked(names):
    return [
        pytest.param(name, marks=pytest.mark.slow) if CASES[name].slow else name for name in names
    ]


def _agrees(kernel, expected, tolerance):
    assert gap(kernel.matrix, expected.matrix) < tolerance
    assert gap(sum(kernel.layers.values()), expected.trace) < tolerance
    assert set(kernel.layers) == set(expected.layers)
    size = expected.trace.norm()
    for name, part in expected.layers.items():
        assert (kernel.layers[name] - part).norm() / size < tolerance, name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", _marked(CASES))
def test_every_engine_gives_the_kernel_of_plain_autograd(name, engine):
    case = CASES[name]
    model, inputs, settings = case.build()
    settings |= {"engine": engine, "dtype": torch.float64}
    if name in REFUSED[engine]:
        with pytest.raises(CoverageError, match=f"engine='{engine}' cannot differentiate"):
            empirical_ntk(model, inputs, **settings)
        return
    kernel = empirical_ntk(model, inputs, **settings)
    _agrees(kernel, reference_of(case), case.tolerance)
