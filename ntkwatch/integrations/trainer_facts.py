"""What only Lightning knows about a run, read from public trainer attributes, one counter apart."""

import warnings
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ntkwatch.errors import InputError
from ntkwatch.watch.training import LossFunction, Training, training_of

__all__ = [
    "averages_weights",
    "can_watch",
    "loss_of",
    "may_stop_early",
    "place_of",
    "sharded_strategy",
    "time_left",
    "total_steps",
    "training_facts",
]

# By name, since every strategy class exists once in each of the two namespaces.
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")


def place_of(trainer: Any, *, ended: bool = False) -> dict[str, int]:
    """Return where training is.

    Args:
        trainer: Lightning trainer.
        ended: Whether the last batch is over and its counters have moved on.

    Returns:
        Optimizer steps taken, epochs completed, and the x axis of the run's own curves.
    """
    # Lightning's loggers count batches that stepped, which no public attribute gives; its own
    # LearningRateMonitor reads this one. Its epoch-end metrics step back by one, as here.
    counter = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    step = int(trainer.global_step)
    logged_step = step if counter is None else max(0, int(counter) - ended)
    return {"step": step, "epoch": int(trainer.current_epoch), "logged_step": logged_step}


def total_steps(trainer: Any) -> int | None:
    """Return the optimizer steps that the run will take, or None where that is not known."""
    try:
        total = trainer.estimated_stepping_batches
    except Exception:  # Lightning may refuse where the accumulation changes by epoch
        return None
    return None if total in (-1, float("inf")) else int(total)


def may_stop_early(trainer: Any) -> bool:
    """Return whether a callback may end the run before its time.

    Args:
        trainer: Lightning trainer.

    Returns:
        True if so; a user who interrupts it, or a training step that stops it, is not foreseen.
    """
    return any(_is_a(callback, "EarlyStopping") for callback in trainer.callbacks)


def time_left(trainer: Any) -> float | None:
    """Return the seconds until a clock ends the run (``max_time``), or None without one.

    Args:
        trainer: Lightning trainer.

    Returns:
        The least of all clocks' times.
    """
    clocks = [callback for callback in trainer.callbacks if _is_a(callback, "Timer")]
    left = [clock.time_remaining() for clock in clocks if hasattr(clock, "time_remaining")]
    return min((float(seconds) for seconds in left if seconds is not None), default=None)


def _is_a(callback: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(callback).__mro__)


def loss_of(trainer: Any, outputs: Any) -> Tensor | None:
    """Return the training step's loss as the user's ``training_step`` gave it, or None.

    Args:
        trainer: Lightning trainer.
        outputs: What ``on_train_batch_end`` is handed.

    Returns:
        A tensor, or None.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    # Under automatic optimization Lightning hands out the loss divided by the accumulated batches.
    batches = trainer.accumulate_grad_batches
    if not isinstance(loss, Tensor):
        return None
    return loss if batches == 1 else loss * batches


def training_facts(
    trainer: Any, model: nn.Module, loss_function: LossFunction = "auto"
) -> Training:
    """Return how the model is trained right now, as far as Lightning knows.

    Args:
        trainer: Lightning trainer.
        model: Its module.
        loss_function: As the user gave it; "auto" takes the one loss that the module holds, if it
            holds exactly one.

    Returns:
        What is known.
    """
    if loss_function == "auto":
        held = {id(m): m for m in model.modules() if isinstance(m, nn.modules.loss._Loss)}
        loss_function = next(iter(held.values())) if len(held) == 1 else None
    return training_of(
        trainer.optimizers,
        loss_function=loss_function,
        batch_size=_samples_per_step(trainer, model),
        clipped=bool(trainer.gradient_clip_val),
    )


def _samples_per_step(trainer: Any, model: Any) -> int | None:
    """Samples that one optimizer step adds up, or None where a training step decides by itself."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or not getattr(model, "automatic_optimization", False):
        return None
    if loader.batch_size is None:
        return None
    size = loader.batch_size
    if hasattr(loader.dataset, "__len__"):
        size = min(size, len(loader.dataset))
    return int(size * trainer.accumulate_grad_batches * trainer.world_size)


def sharded_strategy(trainer: Any) -> str | None:
    """Return the name of the strategy if it keeps parameters in shards, else None."""
    strategy = trainer.strategy
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    sharded = kinds & set(_SHARDED) or getattr(strategy, "zero_stage_3", False)
    return type(strategy).__name__ if sharded else None


def can_watch(trainer: Any, on_error: str) -> bool:
    """Return whether the strategy keeps whole parameters; warn or raise if it does not.

    Args:
        trainer: Lightning trainer.
        on_error: "warn" or "raise".

    Returns:
        True if it does.

    Raises:
        InputError: If it does not and ``on_error`` is "raise"; on every process, so that none
            waits for another.
    """
    strategy = sharded_strategy(trainer)
    if strategy is None:
        return True
    message = (
        f"{strategy} keeps parameters in shards, which this version cannot differentiate per "
        "sample, so this run is not watched. Save full checkpoints and compare empirical_ntk of "
        "two of them instead."
    )
    if on_error == "raise":
        raise InputError(message)
    if trainer.is_global_zero:
        warnings.warn(message, stacklevel=3)
    return False


def averages_weights(trainer: Any) -> bool:
    """Return whether a callback may have swapped averaged weights in at the end of training."""
    names = {kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__}
    return bool(names & set(_AVERAGING))
