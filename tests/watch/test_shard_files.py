"""A process's part of an anchor on disk; oracles: what was written, and files that do not fit.

Parameters that are held whole take the same way as shards. Shards themselves are written and read
by two processes in ``integrations/test_processes.py``.
"""

import pytest
import torch

from ntkwatch.errors import HistoryError
from ntkwatch.watch.anchors.anchor_files import write_anchor
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.anchors.shard_files import Part, path_of_part, read_part, write_part

PART = Part(1, 2)
WEIGHTS = {"a.weight": torch.rand(3, 2), "a.bias": torch.rand(3), "none": torch.rand(0, 4)}


@pytest.fixture
def folder(tmp_path):
    params = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    anchor = Anchor(step=5, params=params, buffers={}, outputs=torch.rand(4, 1), clock={"0.0": 0.5})
    write_part(tmp_path, "start", anchor, PART, mark="this one")
    return tmp_path


def test_a_part_comes_back_as_it_was(folder):
    anchor, mark = read_part(folder, "start", WEIGHTS, PART)
    assert mark == "this one"
    assert (anchor.step, anchor.clock) == (5, {"0.0": 0.5})
    assert list(anchor.params) == list(WEIGHTS)
    assert all(torch.equal(anchor.params[name], tensor + 1) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("part", [Part(0, 2), Part(1, 3)], ids=["other process", "more processes"])
def test_the_part_of_another_process_is_not_taken(folder, part):
    with pytest.raises(HistoryError, match=r"it does not exist.*Resume in as many processes"):
        read_part(folder, "start", WEIGHTS, part)


@pytest.mark.parametrize(
    ("now", "odd"),
    [
        ({**WEIGHTS, "a.bias": torch.rand(4)}, "a.bias"),
        ({**WEIGHTS, "b": torch.rand(1)}, "b"),
        ({name: WEIGHTS[name] for name in ("a.weight", "none")}, "a.bias"),
    ],
    ids=["another shape", "one more", "one less"],
)
def test_parts_of_another_model_are_refused(folder, now, odd):
    with pytest.raises(HistoryError, match=rf"other shards than this process has now \({odd}\)"):
        read_part(folder, "start", now, PART)


@pytest.mark.parametrize("content", [b"", b"no safetensors file"])
def test_what_is_no_part_is_refused(folder, content):
    path_of_part(folder, "start", PART).write_bytes(content)
    with pytest.raises(HistoryError, match="cannot be read"):
        read_part(folder, "start", WEIGHTS, PART)


def test_an_anchor_of_a_whole_model_is_no_part(folder, tmp_path):

    path = path_of_part(folder, "start", PART)
    write_anchor(path, Anchor(step=0, params=WEIGHTS, buffers={}, outputs=torch.rand(2, 1)))
    with pytest.raises(HistoryError, match="cannot be read"):
        read_part(folder, "start", WEIGHTS, PART)
