"""Where a Lightning run's probe comes from, without disturbing its loaders."""

import importlib
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset

from ntkwatch.errors import InputError
from ntkwatch.watch.probe import ProbeBatch, draw_probe, split_batch
from ntkwatch.watch.store import read_probe

__all__ = ["named_object", "probe_from_trainer", "probe_given"]


def named_object(name: str) -> Any:
    """Return the object that a dotted path such as "package.module:name" names.

    Args:
        name: Module and attribute, separated by a colon or the last dot.

    Returns:
        The object.

    Raises:
        InputError: If it cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{name!r} cannot be imported ({error}), so it is not known what is meant. Give it as "
            '"package.module:name", with the package installed or in the current folder.'
        ) from error


def probe_given(probe: Any) -> ProbeBatch:
    """Return the probe that a user named: a batch, a ``ProbeBatch``, a file or a dotted path.

    Args:
        probe: As given to the monitor.

    Returns:
        The probe.
    """
    if isinstance(probe, ProbeBatch):
        return probe
    if isinstance(probe, str | Path):
        if Path(probe).suffix == ".safetensors":
            return read_probe(Path(probe))
        found = named_object(str(probe))
        return probe_given(found() if callable(found) else found)
    return ProbeBatch(*split_batch(probe))


def probe_from_trainer(trainer: Any, where: str, size: int) -> ProbeBatch | None:
    """Return a class-balanced probe from a run's validation or training dataset.

    Args:
        trainer: Lightning trainer whose loaders are set up.
        where: "auto" (validation, else training), "val" or "train".
        size: Probe points.

    Returns:
        The probe, or None where no map-style dataset is there to read items from.
    """
    sources = {"val": trainer.val_dataloaders, "train": trainer.train_dataloader}
    wanted = ("val", "train") if where == "auto" else (where,)
    for name in wanted:
        loader = _first_loader(sources[name])
        if loader is not None:
            return draw_probe(
                loader.dataset,
                size,
                collate=loader.collate_fn,
                origin={"val": "validation dataset", "train": "training dataset"}[name],
            )
    return None


def _first_loader(loaders: Any) -> DataLoader[Any] | None:
    """The first loader over a dataset whose items can be read one by one, in whatever it is in."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        found = [_first_loader(loader) for loader in loaders]
        return next((loader for loader in found if loader is not None), None)
    if not isinstance(loaders, DataLoader) or isinstance(loaders.dataset, IterableDataset):
        return None
    readable = hasattr(loaders.dataset, "__len__") and hasattr(loaders.dataset, "__getitem__")
    return loaders if readable and len(cast(Sized, loaders.dataset)) > 1 else None
