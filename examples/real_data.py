"""Real data for the examples, read from files: nothing is downloaded while an example runs."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["FOLDER", "fashion_mnist", "fortunes", "texts"]

# Where `make data` unpacks the packages.
FOLDER = Path(__file__).parents[1] / "data"
_FASHION, _FORTUNES = "usr/share/datasets/fashion-mnist", "usr/share/games/fortunes"
_SPLITS = {"train": "train", "test": "t10k"}
# Jokes of another time.
_LEFT_OUT = ("drugs", "ethnic", "men-women", "politics")


def fashion_mnist(split: str, folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 28, 28) in [0, 1] and the labels of "train" or "test"."""
    place = next((at for at in (folder, folder / _FASHION) if list(at.glob("*-idx?-ubyte*"))), None)
    if place is None:
        raise SystemExit(
            f"there is no Fashion-MNIST in {folder}, so there are no images to train on. Run `make "
            "data` (on Debian or a relative of it), or name a folder that holds its four IDX files "
            "(train-images-idx3-ubyte.gz and so on, gzipped or not): --data FOLDER."
        )
    images = _idx(place / f"{_SPLITS[split]}-images-idx3-ubyte")
    labels = _idx(place / f"{_SPLITS[split]}-labels-idx1-ubyte")
    return torch.tensor(images)[:, None].float() / 255, torch.tensor(labels).long()


def _idx(path: Path) -> np.ndarray:
    """Read one IDX file: two zeros, the type, the number of axes, their lengths, the bytes."""
    zipped = path.with_name(path.name + ".gz")
    content = gzip.decompress(zipped.read_bytes()) if zipped.exists() else path.read_bytes()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, "u1", offset=4 + 4 * axes).reshape(shape)


def texts(place: Path = FOLDER) -> list[str]:
    """Return short texts: those of Debian's `fortunes`, or the paragraphs of any UTF-8 file."""
    if place.is_file():
        return _parts(place, "\n\n")
    topics = sorted(path.name for path in _fortunes_in(place).glob("*") if not path.suffix)
    return [text for name in topics if name not in _LEFT_OUT for text in fortunes(name, place)]


def fortunes(topic: str, folder: Path = FOLDER) -> list[str]:
    """Return the texts of one topic of Debian's `fortunes`."""
    return _parts(_fortunes_in(folder) / topic, "\n%\n")


def _fortunes_in(folder: Path) -> Path:
    place = next((at for at in (folder, folder / _FORTUNES) if (at / "computers").exists()), None)
    if place is None:
        raise SystemExit(
            f"there are no texts in {folder}, so there is no language to learn. Run `make data` "
            "(on Debian or a relative of it), or name a folder of the files of Debian's package "
            "`fortunes`: --data FOLDER. A language model takes any UTF-8 text file: --data FILE."
        )
    return place


def _parts(file: Path, separator: str) -> list[str]:
    found = file.read_text(encoding="utf-8", errors="replace").split(separator)
    return [text.strip() for text in found if text.strip()]
