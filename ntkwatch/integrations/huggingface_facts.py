"""What only Hugging Face's ``Trainer`` knows about a run; its callbacks are told little of it."""

import inspect
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.watch.training import Training, training_of

__all__ = [
    "BoardLogger",
    "StepLoss",
    "calling_trainer",
    "check_whole",
    "ends_with_other_weights",
    "in_training_modes",
    "may_stop_early",
    "place_of",
    "training_facts",
    "whole_model",
]

_CALLERS = 20  # a few more than lie between a callback and the Trainer that calls it


def calling_trainer() -> Any | None:
    """Return the ``Trainer`` whose callback is being called, or None if it cannot be found.

    Callbacks are handed neither the Trainer nor each other, and so neither the evaluation data nor
    TensorBoard's writer. It stands among the callers all the same.
    """
    from transformers import Trainer

    frame = inspect.currentframe()
    for _ in range(_CALLERS):
        frame = None if frame is None else frame.f_back
        if frame is None:
            return None
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
    return None


def whole_model(model: nn.Module) -> nn.Module:
    """Return the model inside ``DataParallel`` and ``DistributedDataParallel``."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def check_whole(trainer: Any, model: nn.Module, on_error: str, *, is_main: bool) -> bool:
    """Return whether the model's parameters are whole; warn or raise if they are not.

    Args:
        trainer: Hugging Face's, or None.
        model: Its model.
        on_error: "warn" or "raise".
        is_main: Whether this is the process that speaks for all.

    Returns:
        True if they are.

    Raises:
        InputError: If they are not and ``on_error`` is "raise"; on every process, so that none
            waits for another.
    """
    names = {
        "is_fsdp_enabled": "FSDP",
        "is_fsdp_xla_enabled": "FSDP",
        "is_deepspeed_enabled": "DeepSpeed",
    }
    found = [name for flag, name in names.items() if getattr(trainer, flag, False)]
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        found.append("tensor parallelism")
    if not found:
        return True
    message = (
        f"this Trainer runs under {found[0]}, which keeps parameters in shards or in its own "
        "hands, so this run is not watched. Save full checkpoints and compare empirical_ntk of "
        "two of them instead."
    )
    if on_error == "raise":
        raise InputError(message)
    if is_main:
        warnings.warn(message, stacklevel=3)
    return False


def place_of(state: Any) -> dict[str, int]:
    """Return optimizer steps taken and epochs completed."""
    return {"step": int(state.global_step), "epoch": int(state.epoch or 0)}


def training_facts(args: Any, optimizer: Any, loader: Any) -> Training:
    """Return how the model is trained right now, as far as that is known.

    Args:
        args: Training arguments.
        optimizer: As callbacks get it: perhaps accelerate's, around the real one.
        loader: Of the training data.

    Returns:
        What is known; the loss is inside the model, so it is not.
    """
    size, dataset = args.train_batch_size, getattr(loader, "dataset", None)
    if isinstance(dataset, Sized):
        size = min(size, len(dataset))
    return training_of(
        getattr(optimizer, "optimizer", optimizer),
        batch_size=int(size * args.gradient_accumulation_steps * args.world_size),
        clipped=bool(args.max_grad_norm and args.max_grad_norm > 0),
    )


def ends_with_other_weights(args: Any, state: Any) -> bool:
    """Return whether the weights at the end of training are those of the best checkpoint."""
    return bool(args.load_best_model_at_end and state.best_model_checkpoint is not None)


def may_stop_early(trainer: Any) -> bool:
    """Return whether a callback may end the run before its time."""
    callbacks = getattr(getattr(trainer, "callback_handler", None), "callbacks", ())
    kinds = {kind.__name__ for callback in callbacks for kind in type(callback).__mro__}
    return "EarlyStoppingCallback" in kinds


@contextmanager
def in_training_modes(model: nn.Module) -> Iterator[None]:
    """Show the modes in which the Trainer trains, before it has set them itself.

    Pretrained models come in evaluation mode, and the Trainer changes that at the first batch.

    Args:
        model: Its model.

    Yields:
        Nothing.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = True
        yield
    finally:
        for module, training in before:
            module.training = training


class StepLoss:
    """The training loss of each optimizer step, from the sum that the Trainer keeps on the device.

    Callbacks are told the loss only when it is logged, which may be never in a short run.
    """

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def of_step(self, trainer: Any) -> Tensor | None:
        """Return the loss of the step that has just ended, or None where that is not kept."""
        total = getattr(trainer, "_tr_loss", None)
        if not isinstance(total, Tensor):
            return None
        now = total.detach().clone()
        step, self._before = now if self._before is None else now - self._before, now
        return step

    def logged(self, trainer: Any) -> None:
        """Note that the Trainer may have started its sum over, as it does when it logs."""
        total = getattr(trainer, "_tr_loss", None)
        self._before = total.detach().clone() if isinstance(total, Tensor) else None


class BoardLogger:
    """Hands scalars to the writer of the Trainer's own TensorBoard callback, where it has one.

    Args:
        trainer: Hugging Face's, or None.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._writer: Any = None

    @property
    def experiment(self) -> Any | None:
        """The summary writer, or None; kept, since the Trainer lets go of it at the end."""
        handler = getattr(self._trainer, "callback_handler", None)
        for callback in getattr(handler, "callbacks", ()):
            writer = getattr(callback, "tb_writer", None)
            if callable(getattr(writer, "add_scalar", None)):
                self._writer = writer
        return self._writer

    def log_metrics(self, scalars: dict[str, float], step: int) -> None:
        """Write scalars, if there is a writer."""
        writer = self.experiment
        if writer is not None:
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.flush()
