"""Where the probe of a Hugging Face ``Trainer`` comes from, without disturbing its loaders."""

import copy
import inspect
from collections.abc import Mapping, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ntkwatch.errors import InputError
from ntkwatch.integrations.arguments import DRAWN
from ntkwatch.integrations.trainer_probe import given_probe, inputs_for
from ntkwatch.jacobian.inputs import Inputs, map_inputs
from ntkwatch.watch.probe import ProbeBatch, draw_probe, split_batch

__all__ = ["PassingBatches", "probe_of_trainer"]

_LABELS = (
    "labels",
    "label",
    "label_ids",
)  # columns that the Trainer keeps whatever the model takes
_NOT_DATA = ("num_items_in_batch",)  # what the Trainer adds to a batch for the loss


def probe_of_trainer(
    trainer: Any, model: nn.Module, loader: Any, probe: Any, size: int, *, seed: int = 0
) -> ProbeBatch | None:
    """Return the probe of a run: drawn from its data, or the one that the user named.

    Args:
        trainer: Hugging Face's, or None where it is not known.
        model: Its model.
        loader: Of its training data.
        probe: As given to the callback.
        size: Probe points to draw.
        seed: Of the choice.

    Returns:
        The probe, or None where one is to be drawn and no dataset is there to read items from.

    Raises:
        InputError: If evaluation data was asked for and cannot be read item by item.
    """
    if not (isinstance(probe, str) and probe in DRAWN):
        return given_probe(probe, model)
    sources = {
        "val": getattr(trainer, "eval_dataset", None),
        "train": getattr(loader, "dataset", None),
    }
    words = {"val": "evaluation dataset", "train": "training dataset"}
    for name in ("val", "train") if probe == "auto" else (probe,):
        dataset = _readable(sources[name])
        if dataset is not None:
            collate = _Collate(trainer, model, loader)
            return draw_probe(dataset, size, collate=collate, seed=seed, origin=words[name])
    if probe == "val":
        raise InputError(
            "probe='val' asks for evaluation data, and this Trainer has no eval_dataset that can "
            "be read item by item. Give it one, use probe='train', or give a batch."
        )
    return None


def _parts_of(batch: Any, model: nn.Module, label_names: Any = ()) -> tuple[Inputs, Tensor | None]:
    """Return the inputs and the targets in a batch of the Trainer's.

    Args:
        batch: As its collator makes it.
        model: That is to be called with the inputs.
        label_names: What the Trainer takes for labels: a model given those would return a loss.

    Returns:
        Inputs, and targets where there is one tensor of them.
    """
    inputs, targets = split_batch(batch)
    if isinstance(inputs, Mapping):
        labels = [inputs[name] for name in label_names if isinstance(inputs.get(name), Tensor)]
        if targets is None and len(labels) == 1:
            targets = labels[0]
        inputs = {name: value for name, value in inputs.items() if name not in label_names}
    return inputs_for(model, inputs), targets


class PassingBatches:
    """Keeps the batches that enter a model in training, which no callback is handed.

    Args:
        model: The model.
        trainer: Hugging Face's, or None.

    Raises:
        InputError: If the model is compiled, where one more hook may change what is computed.
    """

    def __init__(self, model: nn.Module, trainer: Any) -> None:
        if getattr(getattr(trainer, "args", None), "torch_compile", False):
            raise InputError(
                "this run has no dataset whose items can be read one by one, and its model is "
                "compiled, so that its batches cannot be looked at either. Pass probe=, a batch."
            )
        self._label_names = _label_names(trainer)
        self._kept: list[dict[str, Any]] = []
        self._failure: Exception | None = None
        self._handle = model.register_forward_pre_hook(self._keep, with_kwargs=True)
        self._model = model

    def taken(self) -> list[tuple[Inputs, Tensor | None]]:
        """Return inputs and targets of the batches that have passed since the last time.

        Raises:
            Exception: What went wrong when one was copied.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        kept, self._kept = self._kept, []
        return [_parts_of(batch, self._model, self._label_names) for batch in kept]

    def stop(self) -> None:
        """Look at no more batches."""
        self._handle.remove()
        self._kept = []

    def _keep(self, module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        batch = {name: value for name, value in inputs.items() if name not in _NOT_DATA}
        try:
            # Copies: a model may write to its batch.
            self._kept.append(map_inputs(lambda tensor: tensor.detach().clone(), batch))
        except Exception as failure:  # this is the training's own forward pass
            self.stop()
            self._failure = failure


class _Collate:
    """Makes a batch of items as the Trainer does, and takes it apart.

    An object and no function, so that random generators which the collator keeps are found and put
    back.
    """

    def __init__(self, trainer: Any, model: nn.Module, loader: Any) -> None:
        # A copy: some collators make their generator at the first call, which is not ours to make.
        self.collator = copy.copy(getattr(trainer, "data_collator", None) or loader.collate_fn)
        self.label_names = _label_names(trainer)
        self._columns = _columns(trainer, model, self.label_names)
        self._model = (model,)  # in a tuple, so that this counts as data and not as a module

    def __call__(self, items: list[Any]) -> tuple[Inputs, Tensor | None]:
        (model,) = self._model
        device = next(model.parameters()).device
        batch = self.collator([self._without_unused(item) for item in items])
        inputs, targets = _parts_of(batch, model, self.label_names)
        return (
            map_inputs(lambda tensor: tensor.to(device), inputs),
            None if targets is None else targets.to(device),
        )

    def _without_unused(self, item: Any) -> Any:
        if self._columns is None or not isinstance(item, Mapping):
            return item
        return {name: value for name, value in item.items() if name in self._columns}


def _label_names(trainer: Any) -> tuple[str, ...]:
    return tuple(getattr(trainer, "label_names", None) or ())


def _columns(trainer: Any, model: nn.Module, label_names: tuple[str, ...]) -> set[str] | None:
    """The columns that the Trainer hands to its collator, or None for all."""
    args = getattr(trainer, "args", None)
    if not getattr(args, "remove_unused_columns", False):
        return None
    inner = getattr(model, "get_base_model", None)  # PEFT takes any argument and passes it on
    called = model if inner is None else inner()
    return {*inspect.signature(called.forward).parameters, *_LABELS, *label_names}


def _readable(data: Any) -> Any | None:
    """The first dataset whose items can be read one by one, in whatever it is in."""
    if isinstance(data, dict):
        found = [_readable(dataset) for dataset in data.values()]
        return next((dataset for dataset in found if dataset is not None), None)
    if data is None or isinstance(data, str | IterableDataset | torch.Tensor):
        return None
    readable = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return data if readable and len(cast(Sized, data)) > 1 else None
