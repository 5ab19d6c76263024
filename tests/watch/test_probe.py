"""Drawing, splitting and telling apart probes; oracles: counting, and the random streams."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from ntkwatch import ProbeBatch
from ntkwatch.errors import InputError
from ntkwatch.watch.probe import draw_probe, gather_rows, split_batch


def _lopsided(n: int = 400) -> TensorDataset:
    """Six in ten of class 0, two each of classes 1 and 2; the input is the item's number."""
    targets = torch.zeros(n, dtype=torch.long)
    targets[::5], targets[2::5] = 1, 2
    return TensorDataset(torch.arange(n, dtype=torch.float32)[:, None], targets)


def test_classes_are_as_even_as_the_candidates_allow():
    probe = draw_probe(_lopsided(), 30)
    assert Counter(probe.targets.tolist()) == {0: 10, 1: 10, 2: 10}
    assert probe.targets.tolist() == sorted(probe.targets.tolist())


def test_a_class_that_runs_out_leaves_its_place_to_the_others():
    dataset = TensorDataset(torch.rand(8, 2), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2]))
    probe = draw_probe(dataset, 6)
    assert Counter(probe.targets.tolist()) == {0: 4, 1: 1, 2: 1}


def test_inputs_stay_with_their_targets():
    dataset = _lopsided()
    probe = draw_probe(dataset, 30)
    for x, y in zip(probe.inputs, probe.targets, strict=True):
        assert dataset[int(x)][1] == y


def test_the_same_seed_draws_the_same_probe_and_another_one_another():
    dataset = _lopsided()
    same = [draw_probe(dataset, 16, seed=3).fingerprint() for _ in range(2)]
    assert same[0] == same[1] != draw_probe(dataset, 16, seed=4).fingerprint()


def test_a_small_dataset_is_taken_whole():
    assert len(draw_probe(TensorDataset(torch.rand(5, 2)), 64)) == 5


def test_regression_targets_are_drawn_as_they_come():
    probe = draw_probe(TensorDataset(torch.rand(50, 2), torch.rand(50, 1)), 8)
    assert probe.targets.shape == (8, 1)
    assert not probe.has_classes


class _Noisy(Dataset):
    """Items that draw from every random stream there is, and from streams of the dataset's own."""

    def __init__(self):
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)
        self.parts = [{"torch": torch.Generator().manual_seed(0)}]

    def __len__(self):
        return 20

    def __getitem__(self, index):
        drawn = [random.random(), np.random.rand(), self.numpy.random(), self.python.random()]
        own = torch.rand(1, generator=self.parts[0]["torch"])
        return torch.cat([torch.tensor(drawn, dtype=torch.float32), torch.rand(1), own])


def _streams(dataset: _Noisy) -> list[float]:
    """The next number of each stream."""
    return dataset[0].tolist()


def test_drawing_leaves_every_random_stream_where_it_was():
    def seeded() -> _Noisy:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        return _Noisy()

    expected = _streams(seeded())
    dataset = seeded()
    draw_probe(dataset, 8)
    assert _streams(dataset) == expected


@pytest.mark.parametrize("kind", ["tensor", "list", "tuple of three", "mapping", "hugging face"])
def test_batches_are_split_into_inputs_and_targets(kind):
    x, y = torch.rand(4, 2), torch.arange(4)
    batch, inputs, targets = {
        "tensor": (x, x, None),
        "list": ([x, y], x, y),
        "tuple of three": ((x, y, x), x, y),
        "mapping": ({"image": x, "label": y}, {"image": x}, y),
        "hugging face": ({"input_ids": x, "labels": y, "n": None}, {"input_ids": x, "n": None}, y),
    }[kind]
    found, wanted = split_batch(batch)
    assert (found is inputs) or found == inputs
    assert wanted is targets


def test_a_batch_of_no_known_kind_is_refused():
    with pytest.raises(InputError, match="a batch is a str"):
        split_batch("abc")


def test_rows_of_several_batches_make_one_probe():
    batches = [({"x": torch.full((3, 2), float(i))}, torch.full((3,), i)) for i in range(4)]
    probe = gather_rows(batches, 8, origin="rows")
    assert Counter(probe.targets.tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert torch.equal(probe.inputs["x"][:, 0], probe.targets.float())


def test_targets_that_are_not_one_per_sample_are_not_guessed_at():
    """Token labels flattened into one row belong to no sample that can be known."""
    probe = gather_rows([(torch.rand(3, 2), torch.arange(12))], 8, origin="rows")
    assert probe.targets is None


@pytest.mark.parametrize(
    ("inputs", "targets", "said"),
    [
        (torch.rand(1, 2), None, "the probe has 1 sample and"),
        ({"a": torch.rand(3, 2), "b": torch.rand(4, 2)}, None, "first dimensions differ"),
        (torch.rand(3, 2), torch.arange(4), "3 samples and targets of shape"),
        (torch.rand(3, 2), torch.tensor(1), "3 samples and targets of shape"),
        ({"a": "text"}, None, "hold no tensor"),
    ],
)
def test_a_probe_that_cannot_be_one_is_refused(inputs, targets, said):
    with pytest.raises(InputError, match=said):
        ProbeBatch(inputs, targets)


def test_fingerprints_differ_by_value_type_place_and_target():
    x, y = torch.rand(3, 2), torch.rand(3, 2)
    probes = [
        ProbeBatch({"a": x, "b": y}),
        ProbeBatch({"a": y, "b": x}),
        ProbeBatch({"b": x, "a": y}),
        ProbeBatch({"a": x, "b": y, "c": None}),
        ProbeBatch({"a": x, "b": y}, torch.arange(3)),
        ProbeBatch({"a": x.double(), "b": y.double()}),
    ]
    assert len({probe.fingerprint() for probe in probes}) == len(probes)
    assert probes[0].fingerprint() == ProbeBatch({"a": x.clone(), "b": y.clone()}).fingerprint()


def test_fingerprints_tell_equal_bytes_of_another_type_or_shape_apart():
    """Zeros are zeros in every type."""
    probes = [
        ProbeBatch(torch.zeros(4, 4)),
        ProbeBatch(torch.zeros(4, 2, dtype=torch.float64)),
        ProbeBatch(torch.zeros(4, 2, 2)),
    ]
    assert len({probe.fingerprint() for probe in probes}) == 3


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.uint8, torch.complex64])
def test_probes_of_every_type_have_a_fingerprint(dtype):
    probe = ProbeBatch(torch.ones(3, 2).to(dtype))
    assert probe.fingerprint() == ProbeBatch(torch.ones(3, 2).to(dtype)).fingerprint()


def test_a_description_counts_the_classes():
    about = ProbeBatch(torch.rand(4, 2), torch.tensor([2, 0, 2, 2]), origin="here").describe()
    assert (about["size"], about["origin"]) == (4, "here")
    assert about["classes"] == {"0": 1, "2": 3}
