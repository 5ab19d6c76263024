"""The examples' data: files written here byte by byte, and the messages where there are none."""

import gzip
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def example(monkeypatch):
    """Import a module of the examples as their scripts do."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


def _idx(*axes, content):
    """The format by its definition: two zeros, 8 for bytes, how many axes, their lengths."""
    return bytes([0, 0, 8, len(axes)]) + b"".join(n.to_bytes(4, "big") for n in axes) + content


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_four_idx_files_of_ones_own_are_read(example, tmp_path, ending):
    write = (lambda content: content) if ending == "" else gzip.compress
    images = _idx(2, 28, 28, content=bytes([0] * 784 + [255] * 783 + [51]))
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte{ending}").write_bytes(write(images))
        labels = _idx(2, content=bytes([9, 3]))
        (tmp_path / f"{split}-labels-idx1-ubyte{ending}").write_bytes(write(labels))
    for split in ("train", "test"):
        x, y = example("real_data").fashion_mnist(split, tmp_path)
        assert x.shape == (2, 1, 28, 28)
        assert (x[0] == 0).all()
        assert x[1, 0, 27, 26] == 1
        assert x[1, 0, 27, 27] == pytest.approx(0.2)
        assert y.tolist() == [9, 3]


def test_texts_are_read_from_topics_and_from_any_file(example, tmp_path):
    real_data = example("real_data")
    (tmp_path / "computers").write_text("One.\n%\nTwo\nlines.\n%\n")
    (tmp_path / "computers.dat").write_bytes(b"\x00")
    (tmp_path / "politics").write_text("Left out.\n%\n")
    assert real_data.texts(tmp_path) == ["One.", "Two\nlines."]
    (tmp_path / "novel.txt").write_text("First\nparagraph.\n\nSecond – with a dash.\n", "utf-8")
    assert real_data.texts(tmp_path / "novel.txt") == [
        "First\nparagraph.",
        "Second – with a dash.",
    ]


def test_where_there_is_no_data_the_message_says_what_to_do(example, tmp_path):
    real_data = example("real_data")
    for load in (
        lambda: real_data.fashion_mnist("train", tmp_path),
        lambda: real_data.texts(tmp_path),
    ):
        with pytest.raises(SystemExit) as caught:
            load()
        assert str(tmp_path) in caught.value.code
        assert "make data" in caught.value.code
        assert "--data" in caught.value.code


def test_pieces_hold_every_character_once_as_one_to_predict(example):
    model = example("small_gpt_model")
    texts = ["ab" * 100, "a", "aab"]
    rows = model.pieces(texts)
    batch, targets = model.batch_of(rows)
    # The first character of a text is predicted by nothing before it; a text of one, by nothing.
    assert int(batch["counted"].sum()) == (200 - 1) + (3 - 1)
    assert targets[batch["counted"]].min() >= model.SPACE
    assert (rows[-1, :3] == torch.tensor([2, 2, 3])).all(), "a is more frequent than b"
    assert not rows[-1, 3:].any()


def test_padding_reaches_neither_logits_nor_kernel(example):
    from ntkwatch import empirical_ntk

    model = example("small_gpt_model")
    rows = torch.randint(2, 60, (3, 65))
    rows[1, 20:] = 0
    inputs, _ = model.batch_of(rows)
    tampered = inputs["tokens"].clone()
    tampered[1, 20:] = 7
    net, _ = model.scaled("muP", 32, rate=1e-3, depth=1)
    before, after = (
        empirical_ntk(net, {**inputs, "tokens": tokens}, outputs="random:2")
        for tokens in (inputs["tokens"], tampered)
    )
    torch.testing.assert_close(before.matrix, after.matrix, rtol=0, atol=0)


def test_the_two_scalings_are_one_at_the_base_width_and_part_from_there(example):
    """At four times the width: read-out 1/2 or 1/4, matrices 1/8 or 1/4, the rest 1/2 or 1."""
    model = example("small_gpt_model")
    wanted = {"neural tangent": (1 / 2, 1 / 8, 1 / 2), "muP": (1 / 4, 1 / 4, 1.0)}
    for name, (output, matrices, others) in wanted.items():
        (base, at_base), (wide, optimizer) = (model.scaled(name, w, rate=0.1) for w in (32, 128))
        assert base.scale == pytest.approx(32**-0.5)
        assert [group["lr"] for group in at_base.param_groups] == [0.1, 0.1]
        assert wide.scale == pytest.approx(32**-0.5 * output)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * matrices, 0.1 * others])
        count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        assert count == sum(p.numel() for p in wide.parameters()), "each weight in one group"
