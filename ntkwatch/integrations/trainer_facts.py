"""What only Lightning knows about a run, read from public trainer attributes, one counter apart."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ntkwatch.errors import InputError
from ntkwatch.integrations.processes.crew import Crew
from ntkwatch.watch.processes.team import Team
from ntkwatch.watch.training import LossFunction, Training, training_of

__all__ = [
    "averages_weights",
    "can_watch",
    "crew_of",
    "loss_of",
    "may_stop_early",
    "place_of",
    "refused_strategy",
    "time_left",
    "total_steps",
    "training_facts",
]

# By name, since every strategy class exists once in each of the two namespaces.
_SHARDED = ("FSDPStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")
_MIRRORED = "ModelParallelStrategy"
_NO_GROUP = (
    "the processes of this training cannot exchange anything over gloo, which watching uses beside "
    "the training's own group. Set GLOO_SOCKET_IFNAME to a network interface that all of them have."
)
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


def number_of(optimizer: Any, trainer: Any) -> int:
    """Return which of a run's optimizers this is.

    Args:
        optimizer: As a hook is handed it, which may be Lightning's own wrapper.
        trainer: Lightning trainer.

    Returns:
        Its place; 0 for one that the trainer does not know.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    known = enumerate(trainer.optimizers)
    return next((place for place, own in known if own is inner or own is optimizer), 0)


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


def _kinds(trainer: Any) -> set[str]:
    return {kind.__name__ for kind in type(trainer.strategy).__mro__}


def crew_of(trainer: Any, settings: Mapping[str, Any], *, raises: bool) -> Crew | None:
    """Return the processes of a run; every process has to ask at the same point.

    Args:
        trainer: Lightning trainer.
        settings: Arguments of ``KernelTracker``.
        raises: Whether failures are raised.

    Returns:
        All of them where each holds the model, or shards of it that FSDP2 made; else this one.
        None where they hold shards and cannot exchange anything: such a run cannot be watched.

    Raises:
        InputError: If they cannot exchange anything and ``raises`` is true; in every process.
    """
    kinds = _kinds(trainer)
    helps = "DDPStrategy" in kinds and "DeepSpeedStrategy" not in kinds
    if trainer.world_size < 2 or not (helps or _MIRRORED in kinds):
        return Crew()
    # On the training's own group, before anybody waits for the others in gloo: where NCCL has a
    # network of its own, gloo may find none.
    if trainer.strategy.reduce_boolean_decision(Team.has_network(), all=True):
        team = Team.of_all(lambda: bool(trainer.received_sigterm))
        return Crew(team, mirrors=not helps, settings=settings, raises=raises)
    if raises:
        raise InputError(_NO_GROUP)
    if trainer.is_global_zero:
        then = "The first one measures by itself." if helps else "This run is not watched."
        warnings.warn(f"ntkwatch: {_NO_GROUP} {then}", stacklevel=3)
    return Crew() if helps else None


def refused_strategy(trainer: Any) -> str | None:
    """Return the name of the strategy if it keeps parameters where they cannot be read, or None."""
    unread = _kinds(trainer) & set(_SHARDED) or getattr(trainer.strategy, "zero_stage_3", False)
    return type(trainer.strategy).__name__ if unread else None


def can_watch(trainer: Any, on_error: str) -> bool:
    """Return whether models can be watched under a strategy; warn or raise if they cannot.

    Args:
        trainer: Lightning trainer.
        on_error: "warn" or "raise".

    Returns:
        True if they can.

    Raises:
        InputError: If they cannot and ``on_error`` is "raise"; on every process, so that none
            waits for another.
    """
    strategy = refused_strategy(trainer)
    if strategy is None:
        return True
    message = (
        f"{strategy} keeps parameters in parts that cannot be differentiated per "
        "sample, so this run is not watched. Save full checkpoints and look at them afterwards, in "
        "one process: ntkwatch report CKPTS --model pkg.mod:Net --data pkg.mod:Data; or shard the "
        "model by fully_shard (ModelParallelStrategy), which can be watched."
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
