"""The probe batch: the fixed inputs, and targets, on which kernels are compared.

Drawn once, seeded and class-balanced where there are classes, and told apart by a fingerprint.
Drawing reads items of a dataset, never a loader, with every random stream put back.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.jacobian.inputs import MIN_SAMPLES, Inputs, count_samples, leaves, rebuild, take
from ntkwatch.jacobian.undisturbed import kept_random_streams
from ntkwatch.watch.own_streams import kept_own_streams

__all__ = ["ProbeBatch", "draw_probe", "gather_rows", "sample_form", "split_batch"]

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
# Items looked at per probe point while filling the classes evenly.
_CANDIDATES = 4


@dataclass(frozen=True, slots=True, eq=False)
class ProbeBatch:
    """Fixed inputs on which kernels are compared, with targets where there are any.

    Attributes:
        inputs: A tensor, or a tuple or mapping of tensors, samples first.
        targets: Class labels (N,) or regression targets (N, ...), or None.
        origin: Where it was drawn from, in words.
        whole_training_set: Whether these are all samples that the model is trained on, as they
            are: some numbers mean something there only.

    Raises:
        InputError: If there are fewer than 2 samples, first dimensions differ, or the targets are
            not as many, or no tensor of real numbers.
    """

    inputs: Inputs
    targets: Tensor | None = None
    origin: str = "given"
    whole_training_set: bool = False

    def __post_init__(self) -> None:
        n = count_samples(self.inputs, at_least=MIN_SAMPLES)
        if self.targets is not None and not _is_real_tensor(self.targets):
            raise InputError(
                f"the targets of the probe are a {type(self.targets).__name__}"
                f"{_of_dtype(self.targets)}, and neither classes nor values are read from that. "
                "Give a tensor of class labels (whole numbers) or of floating values."
            )
        if self.targets is not None and (self.targets.ndim == 0 or len(self.targets) != n):
            raise InputError(
                f"the probe has {n} samples and targets of shape {tuple(self.targets.shape)}, so "
                "it is not clear which target belongs to which sample. Give one target per sample, "
                "or targets=None."
            )

    def __len__(self) -> int:
        return count_samples(self.inputs)

    @property
    def has_classes(self) -> bool:
        """Whether the targets are one class label per sample."""
        labels = self.targets
        return labels is not None and not labels.is_floating_point() and labels.ndim == 1

    def fingerprint(self) -> str:
        """Return a digest of the inputs and targets: equal for equal probes only."""
        digest = hashlib.sha256("\n".join(_places(self.inputs)).encode())
        for tensor in [*leaves(self.inputs), *([] if self.targets is None else [self.targets])]:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return fingerprint, size, origin and class counts as JSON-ready values."""
        about: dict[str, Any] = {
            "fingerprint": self.fingerprint(),
            "size": len(self),
            "origin": self.origin,
        }
        if self.whole_training_set:
            about["whole_training_set"] = True
        if self.has_classes and self.targets is not None:
            counts = Counter(self.targets.flatten().tolist())
            about["classes"] = {str(label): counts[label] for label in sorted(counts)}
        return about


def _is_real_tensor(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_complex()


def _of_dtype(targets: Any) -> str:
    return f" of {targets.dtype}" if hasattr(targets, "dtype") else ""


def _places(inputs: Inputs, name: str = "inputs") -> list[str]:
    """Where each part of nested inputs stands; a plain value stands for itself."""
    if isinstance(inputs, Tensor):
        return [name]
    if isinstance(inputs, Mapping):
        return [place for key in inputs for place in _places(inputs[key], f"{name}.{key}")]
    if isinstance(inputs, tuple | list):
        return [place for i, part in enumerate(inputs) for place in _places(part, f"{name}.{i}")]
    plain = isinstance(inputs, bool | int | float | str)
    return [f"{name}={inputs if plain else None!r}"]


def split_batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Return the inputs and the targets in a batch as loaders give them.

    Args:
        batch: A tensor; a tuple or list that starts with inputs and goes on with targets; or a
            mapping, in which labels go by one of their usual names.

    Returns:
        Inputs, and targets or None.

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        found = [key for key in _TARGET_KEYS if isinstance(batch.get(key), Tensor)]
        inputs = {key: value for key, value in batch.items() if key not in _TARGET_KEYS}
        return inputs, batch[found[0]] if found else None
    if isinstance(batch, tuple | list) and len(batch) > 0:
        targets = batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        return batch[0], targets
    raise InputError(
        f"a batch is a {type(batch).__name__}, in which the model's inputs cannot be told from the "
        "targets. Pass probe=ProbeBatch(inputs, targets)."
    )


def draw_probe(
    dataset: Any,
    size: int,
    *,
    collate: Callable[[list[Any]], Any] = torch.utils.data.default_collate,
    seed: int = 0,
    origin: str = "dataset",
) -> ProbeBatch:
    """Return a seeded, class-balanced probe from a map-style dataset.

    Args:
        dataset: Something with ``__len__`` and ``__getitem__``.
        size: Probe points wanted; all of them where the dataset has fewer.
        collate: Makes a batch of items, as the loader does.
        seed: Of the choice.
        origin: Where this comes from, in words.

    Returns:
        The probe, ordered by class where there are classes.
    """
    # Initialised accelerators only: asking one for its state would initialise it.
    devices = [torch.device("cpu")]
    if torch.cuda.is_initialized():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    with kept_random_streams(devices), kept_own_streams(dataset), kept_own_streams(collate):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dataset), generator=generator)[: _CANDIDATES * size].tolist()
        inputs, targets = split_batch(collate([dataset[index] for index in order]))
    return _chosen(inputs, targets, size, origin)


def gather_rows(
    batches: Sequence[tuple[Inputs, Tensor | None]], size: int, *, origin: str
) -> ProbeBatch:
    """Return a probe from the rows of several batches.

    Args:
        batches: Inputs and targets of batches whose samples are of one form, in the order in which
            they came.
        size: Probe points wanted; all rows where there are fewer.
        origin: Where this comes from, in words.

    Returns:
        The probe.
    """
    columns = zip(*(leaves(inputs) for inputs, _ in batches), strict=True)
    inputs = rebuild(batches[0][0], [torch.cat(parts) for parts in columns])
    targets = [target for _, target in batches if target is not None]
    return _chosen(inputs, torch.cat(targets) if targets else None, size, origin)


def sample_form(inputs: Inputs, targets: Tensor | None) -> list[Any]:
    """Return what the samples of two batches must share to be put into one: dtypes and shapes."""
    tensors = [*leaves(inputs), *([] if targets is None else [targets])]
    return [targets is None, *((tensor.dtype, tensor.shape[1:]) for tensor in tensors)]


def _chosen(inputs: Inputs, targets: Tensor | None, size: int, origin: str) -> ProbeBatch:
    count = count_samples(inputs)
    if targets is not None and (targets.ndim == 0 or len(targets) != count):
        targets = None  # of tokens in one row, say: which belongs to which sample is not known
    chosen = _balanced(targets, count, size)
    picked = None if targets is None else targets[chosen]
    return ProbeBatch(take(inputs, chosen), picked, origin=origin)


def _balanced(targets: Tensor | None, count: int, size: int) -> Tensor:
    """Positions of ``size`` samples, as evenly over the classes as the candidates allow."""
    if targets is None or targets.is_floating_point() or targets.ndim != 1:
        return torch.arange(min(size, count))
    labels = targets.tolist()
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    chosen: list[int] = []
    rounds = max(len(members) for members in by_class.values())
    for turn in range(rounds):
        for label in sorted(by_class):
            if turn < len(by_class[label]) and len(chosen) < size:
                chosen.append(by_class[label][turn])
    chosen.sort(key=lambda position: (labels[position], position))
    return torch.tensor(chosen, dtype=torch.long)
