"""Where a Lightning run's probe comes from, without disturbing its loaders."""

import inspect
from collections.abc import Mapping, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ntkwatch.errors import InputError
from ntkwatch.integrations.arguments import DRAWN, named_object
from ntkwatch.jacobian.attributes import kept_attributes
from ntkwatch.jacobian.inputs import Inputs, leaves
from ntkwatch.watch.own_streams import kept_own_streams
from ntkwatch.watch.probe import ProbeBatch, draw_probe, split_batch
from ntkwatch.watch.store import read_probe

# Homes of the forward that a module has which defines none.
_FORWARDLESS = ("torch.nn.modules.module", "pytorch_lightning.core.", "lightning.pytorch.core.")

__all__ = ["first_loader", "given_probe", "held_out_of_run", "inputs_for", "probe_of_run"]

_HELD_OUT = 2000  # validation items: accuracies are then told to a percent


def probe_of_run(
    trainer: Any, model: nn.Module, probe: Any, size: int, *, seed: int = 0
) -> ProbeBatch | None:
    """Return the probe of a run: drawn from its data, or the one that the user named.

    Args:
        trainer: Lightning trainer whose loaders are set up.
        model: Its module.
        probe: As given to the monitor.
        size: Probe points to draw.
        seed: Of the choice.

    Returns:
        The probe, or None where one is to be drawn and no dataset is there to read items from.

    Raises:
        InputError: If validation data was asked for and cannot be read item by item.
    """
    if isinstance(probe, str) and probe in DRAWN:
        return _drawn(trainer, model, probe, size, seed=seed)
    return given_probe(probe, model)


def given_probe(probe: Any, model: nn.Module) -> ProbeBatch:
    """Return the probe that a user named: a batch, a ``ProbeBatch``, a file or a dotted path."""
    if isinstance(probe, ProbeBatch):
        return probe
    if isinstance(probe, str | Path):
        if Path(probe).suffix == ".safetensors":
            return read_probe(Path(probe))
        found = named_object(str(probe))
        return given_probe(found() if callable(found) else found, model)
    inputs, targets = split_batch(probe)
    return ProbeBatch(inputs_for(model, inputs), targets)


def held_out_of_run(trainer: Any, model: nn.Module, held_out: Any) -> ProbeBatch:
    """Return the held-out samples that a user named.

    Args:
        trainer: Lightning trainer whose loaders are set up.
        model: Its module.
        held_out: "val" for the validation dataset, or anything that names a probe.

    Returns:
        The samples: at most 2000 of a validation dataset.

    Raises:
        InputError: If there is no validation dataset to read items from.
    """
    if not isinstance(held_out, str) or held_out != "val":
        return given_probe(held_out, model)
    drawn = _drawn(trainer, model, "val", _HELD_OUT, seed=0)
    assert drawn is not None
    return drawn


def _drawn(
    trainer: Any, model: nn.Module, where: str, size: int, *, seed: int
) -> ProbeBatch | None:
    """A class-balanced probe from the validation ("auto" tries it first) or training dataset."""
    sources = {"val": trainer.val_dataloaders, "train": trainer.train_dataloader}
    for name in ("val", "train") if where == "auto" else (where,):
        loader = first_loader(sources[name])
        if loader is None:
            continue
        words = {"val": "validation dataset", "train": "training dataset"}[name]

        def collate(items: list[Any], loader: DataLoader[Any] = loader) -> Any:
            # The run's own hooks: a batch may be cast, normalised or augmented on its way.
            batch = trainer.strategy.batch_to_device(loader.collate_fn(items))
            inputs, targets = split_batch(batch)
            return inputs_for(model, inputs), targets

        with ExitStack() as stack:
            for thing in (loader.collate_fn, _without_trainer(model), *_data_module(trainer)):
                stack.enter_context(kept_own_streams(thing))
            stack.enter_context(kept_attributes(model))
            return draw_probe(loader.dataset, size, collate=collate, seed=seed, origin=words)
    if where == "val":
        raise InputError(
            "'val' asks for validation data, and this run has no validation DataLoader whose "
            "dataset can be read item by item. Pass validation data to fit(), give a batch, or, "
            "for a probe, use 'train'."
        )
    return None


def _data_module(trainer: Any) -> list[dict[str, Any]]:
    """A run's data module, whose hooks may change a batch on its way; or nothing."""
    module = getattr(trainer, "datamodule", None)
    return [] if module is None else [_without_trainer(module)]


def _without_trainer(thing: Any) -> dict[str, Any]:
    """Attributes of a module or data module, without the way to all that the trainer holds."""
    return {name: value for name, value in vars(thing).items() if name.strip("_") != "trainer"}


def inputs_for(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return a batch's mapping without what the model does not take: numbers of rows, raw texts.

    Args:
        model: That is to be called with the inputs.
        inputs: As the batch has them; anything but a mapping is returned as it is.

    Returns:
        The inputs whose names the model's ``forward`` knows; all, where it takes any or knows none.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    usable = {name: value for name, value in inputs.items() if _is_input(value)}
    try:
        parameters = inspect.signature(_called(model).forward).parameters
    except (TypeError, ValueError):  # a compiled or scripted forward need not say what it takes
        return usable
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return usable
    known = {name: value for name, value in usable.items() if name in parameters}
    return known if leaves(known) else usable


def _is_input(value: Any) -> bool:
    """Tensors, and what can be one value for all samples; a list of texts is neither."""
    return bool(leaves(value)) or isinstance(value, bool | int | float | str | type(None))


def _called(model: nn.Module) -> nn.Module:
    """The module whose forward is called: a LightningModule without one mostly wraps a network."""
    home = type(model).forward.__module__
    if not home.startswith(_FORWARDLESS):
        return model
    owners = [child for child in model.children() if any(True for _ in child.parameters())]
    return owners[0] if len(owners) == 1 else model


def first_loader(loaders: Any) -> DataLoader[Any] | None:
    """The first loader over a dataset whose items can be read one by one, in whatever it is in."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        found = [first_loader(loader) for loader in loaders]
        return next((loader for loader in found if loader is not None), None)
    if not isinstance(loaders, DataLoader) or isinstance(loaders.dataset, IterableDataset):
        return None
    if loaders.batch_sampler is None:  # its items are whole batches
        return None
    readable = hasattr(loaders.dataset, "__len__") and hasattr(loaders.dataset, "__getitem__")
    return loaders if readable and len(cast(Sized, loaders.dataset)) > 1 else None
