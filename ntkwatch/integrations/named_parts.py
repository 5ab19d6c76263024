"""A model and a probe from the names that a user gave on the command line.

What is named is imported and called: names come from the user alone, never from a checkpoint.
"""

import ast
import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ntkwatch.errors import InputError
from ntkwatch.integrations.arguments import named_object
from ntkwatch.integrations.trainer_probe import first_loader, inputs_for
from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.inputs import count_samples, map_inputs, take
from ntkwatch.watch.probe import ProbeBatch, draw_probe, gather_rows, sample_form, split_batch
from ntkwatch.watch.store import read_probe

__all__ = ["build_model", "build_probe", "parse_settings"]

_LOADERS = ("val_dataloader", "train_dataloader")
_FRAMEWORKS = ("pytorch_lightning", "lightning")
_BATCHES = 64  # most batches to look at where rows have to be gathered


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return arguments from words such as "width=512".

    Args:
        settings: One argument each; a value that is no Python literal is text.

    Returns:
        Values by name.

    Raises:
        InputError: If a word has no name or no value.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(
                f"--set {setting!r} names no argument and its value. Write it like --set width=512."
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def build_model(
    name: str, kept: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the model that a dotted path names.

    Args:
        name: Of a class, a function that returns a model, or a model.
        kept: Arguments as a checkpoint keeps them; those that are not taken are left out.
        given: Arguments as the user gave them, which come first.

    Returns:
        The model.

    Raises:
        InputError: If it cannot be made, or is none.
    """
    found = named_object(name)
    if not isinstance(found, nn.Module) and callable(found):
        found = _called(found, name, kept or {}, given or {}, flag="--set NAME=VALUE")
    if not isinstance(found, nn.Module):
        raise InputError(
            f"--model {name} gives a {type(found).__name__}, which is no torch.nn.Module, so there "
            "is no kernel to compute. Name a module class, or a function that returns a model."
        )
    return found


def build_probe(
    name: str,
    model: nn.Module,
    size: int,
    *,
    kept: Mapping[str, Any] | None = None,
    loaders: Sequence[str] = _LOADERS,
) -> ProbeBatch:
    """Return a probe from what a dotted path or a file holds.

    Args:
        name: A ``probe.safetensors``, or the dotted path of a DataModule, a loader, a dataset, a
            batch, a ProbeBatch, or of a function that returns one of these.
        model: That the probe is for.
        size: Probe points.
        kept: Arguments of the data module as a checkpoint keeps them.
        loaders: Of a data module, its methods to look at, the best first.

    Returns:
        The probe.
    """
    if Path(name).suffix == ".safetensors":
        return read_probe(Path(name))
    found = named_object(name)
    if not isinstance(found, Tensor | ProbeBatch | DataLoader) and callable(found):
        found = _called(found, name, kept or {}, {}, flag=None)
    return _probe_of(found, name, model, size, loaders)


def _called(
    what: Any, name: str, kept: Mapping[str, Any], given: Mapping[str, Any], *, flag: str | None
) -> Any:
    arguments = {**_taken(what, kept), **given}
    try:
        return what(**arguments)
    except Exception as error:  # a user's own code can fail in any way
        cure = f"give its arguments with {flag}, or " if flag else ""
        words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(
            f"{name}({words}) fails ({type(error).__name__}: {first_line(error)}), so it is not "
            f"there to be used. Please {cure}name a function without arguments that makes it."
        ) from error


def _taken(what: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(what).parameters
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


# Data. --------------------------------------------------------------------------------------------


def _probe_of(
    found: Any, name: str, model: nn.Module, size: int, loaders: Sequence[str]
) -> ProbeBatch:
    if isinstance(found, ProbeBatch):
        return found
    hooks: Any = None
    if any(hasattr(found, loader) for loader in _LOADERS):
        hooks, found = found, _loader_of(found, name, loaders)

    def inputs_and_targets(batch: Any) -> tuple[Any, Tensor | None]:
        inputs, targets = split_batch(_moved(batch, hooks, model))
        return inputs_for(model, inputs), targets

    loader = first_loader(found)
    if loader is not None:
        collate, dataset = loader.collate_fn, loader.dataset
        return draw_probe(
            dataset, size, collate=lambda items: inputs_and_targets(collate(items)), origin=name
        )
    if _is_dataset(found):
        batches = DataLoader(found, batch_size=min(size, len(found)))
        return draw_probe(
            found,
            size,
            collate=lambda items: inputs_and_targets(batches.collate_fn(items)),
            origin=name,
        )
    if isinstance(found, Tensor | Mapping | tuple | list):
        inputs, targets = inputs_and_targets(found)
        rows = slice(0, size)
        return ProbeBatch(
            take(inputs, rows), None if targets is None else targets[rows], origin=name
        )
    if isinstance(found, IterableDataset):
        found = DataLoader(found, batch_size=size)
    if isinstance(found, Iterable):
        return _gathered((inputs_and_targets(batch) for batch in found), name, size)
    raise InputError(
        f"--data {name} gives a {type(found).__name__}, in which no data was found. Name a "
        "LightningDataModule, a DataLoader, a dataset, a batch, or a function that returns one."
    )


def _loader_of(module: Any, name: str, hooks: Sequence[str]) -> Any:
    """A data module's own loaders: validation first, as these are not augmented."""
    try:
        for hook, arguments in (("prepare_data", ()), ("setup", ("fit",))):
            if callable(getattr(module, hook, None)):
                getattr(module, hook)(*arguments)
        for hook in hooks:
            loader = getattr(type(module), hook, None)
            if loader is not None and not loader.__module__.startswith(_FRAMEWORKS):
                return getattr(module, hook)()
    except Exception as error:  # a user's own code can fail in any way
        raise InputError(
            f"the loaders of {name} cannot be made ({type(error).__name__}: {first_line(error)}), "
            "so there is no data to measure on. Name a function that returns a loader or a batch."
        ) from error
    raise InputError(
        f"{name} defines no {' and no '.join(hooks)}, so there is no data to measure on. "
        "Name a function that returns a loader or a batch."
    )


def _moved(batch: Any, hooks: Any, model: nn.Module) -> Any:
    """What Lightning lets a data module, else the model, do to a batch on its way."""
    for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
        for owner in (hooks, model):
            hook = getattr(type(owner), name, None)
            if hook is not None and not hook.__module__.startswith(_FRAMEWORKS):
                batch = getattr(owner, name)(batch, 0)
                break
    return batch


def _is_dataset(found: Any) -> bool:
    if isinstance(found, Tensor | Mapping | tuple | list | IterableDataset):
        return False
    return hasattr(found, "__len__") and hasattr(found, "__getitem__")


def _gathered(batches: Iterable[tuple[Any, Tensor | None]], name: str, size: int) -> ProbeBatch:
    kept: list[tuple[Any, Tensor | None]] = []
    rows = 0
    for inputs, targets in islice(batches, _BATCHES):
        if kept and sample_form(inputs, targets) != sample_form(*kept[0]):
            continue
        # Copies: a loader may use its memory again.
        kept.append((map_inputs(lambda tensor: tensor.detach().clone(), inputs), targets))
        rows += count_samples(inputs)
        if rows >= size:
            break
    if not kept:
        raise InputError(f"--data {name} gives no batch, so there is no data to measure on.")
    return gather_rows(kept, size, origin=f"rows of the first batches of {name}")
