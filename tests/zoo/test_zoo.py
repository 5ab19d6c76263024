"""Models of many families, each held against plain autograd and against what the docs say of it.

The oracle is ``torch.autograd.grad`` on a deep copy in float64, sample by sample, in
``measure.py``; what exists in torch.nn is asked of torch.nn.
"""

import importlib.util
from pathlib import Path

import pytest
from torch import nn
from zoo.every import ZOO
from zoo.layers import ENTRIES as LAYERS
from zoo.layers import NO_LAYERS
from zoo.measure import measure

ROOT = Path(__file__).parents[2]
ENTRIES = {(domain, entry.title): entry for domain, some in ZOO.items() for entry in some}
HUGGING = [domain for domain in ZOO if domain != "Layers of torch.nn"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def _page_maker():
    spec = importlib.util.spec_from_file_location("make_zoo", ROOT / "docs" / "make_zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "title"), ENTRIES)
def test_the_kernel_is_that_of_plain_autograd_or_refused_with_the_reason(domain, title):
    entry = ENTRIES[domain, title]
    found = measure(entry)
    if entry.refused:
        assert entry.refused in found.refused
        return
    assert not found.refused
    assert found.error < found.tolerance
    assert found.loop < found.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("domain", ZOO)
def test_the_page_says_what_is_found(domain):
    """Errors and times are those of the machine that wrote it, so they are left out."""
    maker = _page_maker()
    told = [row[:-2] for row in maker.rows_of(maker.PAGE.read_text(), domain)]
    assert told == [list(row[:-2]) for row in maker.table(ZOO[domain])]


def test_no_two_entries_have_the_same_title():
    assert len(ENTRIES) == sum(len(some) for some in ZOO.values())


def test_there_are_models_of_forty_families_with_and_without_padding():
    families = {entry.name for domain in HUGGING for entry in ZOO[domain]}
    padded = {entry.name for domain in HUGGING for entry in ZOO[domain] if entry.variant}
    assert len(families) >= 100
    assert len(padded) >= 40


def test_every_layer_of_torch_is_looked_at():
    known = {name for name in dir(nn) if isinstance(getattr(nn, name), type)}
    looked_at = {entry.name for entry in LAYERS}
    assert looked_at == known - NO_LAYERS
