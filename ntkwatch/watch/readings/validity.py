"""Why a number means nothing for a training: its optimizer, its decay, its noise, its probe.

Nothing is measured here. A number without a reason against it may still be undefined.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.held_out import HeldOut
from ntkwatch.watch.readings.measure import Settings
from ntkwatch.watch.training import Training

__all__ = [
    "Course",
    "course_of",
    "why_no_counterfactual",
    "why_no_descent",
    "why_no_row_space",
    "why_no_stable_rate",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is known of a training from the reference to the present step.

    Attributes:
        trainings: Those at observations after the reference, each once, the present one last; the
            present one alone where only metrics="full" would ask for others.
        probe: Of the present observation.
        settings: Of the run.
        reference_is_start: Whether the reference is the start of the training.
        whole: Whether all parameters that train are watched.
        noisy: Name of a layer that draws random numbers while it trains, or None.
        held_out: Samples that the model is not trained on, or None.
    """

    trainings: tuple[Training, ...]
    probe: ProbeBatch
    settings: Settings
    reference_is_start: bool
    whole: bool
    noisy: str | None
    held_out: HeldOut | None = None

    @property
    def now(self) -> Training:
        """How the model is trained at present."""
        return self.trainings[-1]


def course_of(
    model: nn.Module,
    training: Training,
    probe: ProbeBatch,
    settings: Settings,
    *,
    earlier: Iterable[Training] = (),
    reference_is_start: bool = True,
    held_out: HeldOut | None = None,
) -> Course:
    """Return what is known of a training.

    Args:
        model: In the modes in which it trains.
        training: How the model is trained at present.
        probe: Of the present observation.
        settings: Of the run.
        earlier: How it was trained at observations after the reference, each once.
        reference_is_start: Whether the reference is of before training.
        held_out: Samples that the model is not trained on, or None.

    Returns:
        The course.
    """
    trained = {name for name, p in parameters_of(model).items() if p.requires_grad}
    noisy = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    return Course(
        trainings=(*earlier, training),
        probe=probe,
        settings=settings,
        reference_is_start=reference_is_start,
        whole=trained <= set(settings.names),
        noisy=noisy[0] if noisy else None,
        held_out=held_out,
    )


def why_no_row_space(course: Course) -> str | None:
    """Return why the weights may have left the span of the training set's gradients, or None.

    Every step of SGD on a frozen kernel lies in the row space of the Jacobian on the training set:
    for any loss, any batches and any momentum from rest.

    Args:
        course: What is known of the training.

    Returns:
        A reason, or None.
    """
    if not course.probe.whole_training_set:
        return "the probe is not the whole training set"
    if course.settings.moving:
        return "BatchNorms on batch statistics train another function than that of the kernel"
    if course.noisy is not None:
        return f"dropout ({course.noisy}) trains another function at every step"
    if not course.whole:
        return "parameters are trained that the kernel does not see"
    for training in course.trainings:
        if training.optimizer is None:
            return "the optimizer was not given at every observation"
        if training.optimizer != "SGD":
            return f"{training.optimizer} leaves the span of the gradients, even on a frozen kernel"
        if training.weight_decay:
            return f"weight decay ({training.weight_decay:g}) moves weights without a gradient"
        if training.momentum is None:
            return "the momentum is not the same for all parameters"
        if training.momentum and not course.reference_is_start:
            return "momentum goes on from before the reference"
    return None


def why_no_counterfactual(course: Course) -> str | None:
    """Return why regression with the kernel at the start is not what training could have been.

    Whatever the optimizer: what is asked is what these features are worth to this training set.

    Args:
        course: What is known of the training.

    Returns:
        A reason, or None.
    """
    if not course.probe.whole_training_set:
        return "the probe is not the whole training set"
    if course.settings.moving:
        return "BatchNorms on batch statistics train another function than that of the kernel"
    if not course.whole:
        return "parameters are trained that the kernel does not see"
    if course.probe.targets is None:
        return "the probe has no targets"
    return None


def why_no_descent(course: Course) -> str | None:
    """Return why a frozen kernel would not have decayed mode by mode, or None.

    Args:
        course: What is known of the training.

    Returns:
        A reason against full-batch gradient descent on a square loss, or None.
    """
    reason = why_no_row_space(course)
    if reason is not None:
        return reason
    targets = course.probe.targets
    for training in course.trainings:
        if training.square_loss is None:
            named = training.loss_function
            return "the loss was not given" if named is None else f"{named} is no square loss"
        if training.batch_size != len(course.probe):
            known = training.batch_size
            said = "the batch size was not given" if known is None else f"batches are of {known}"
            return f"descent is not known to be full-batch: {said}"
        if training.clipped:
            return "gradients are clipped"
        if training.learning_rate is None:
            return "the learning rate is not the same for all parameters"
        if training.learning_rate != course.now.learning_rate or training.sgd != course.now.sgd:
            return "learning rate or momentum changed on the way"
    if targets is None or not targets.is_floating_point():
        return "the probe has no targets as numbers, so its residual is not known"
    return None


def why_no_stable_rate(course: Course) -> str | None:
    """Return why the largest stable learning rate cannot be told, or None.

    Args:
        course: What is known of the training.

    Returns:
        A reason, or None.
    """
    now, shape = course.now, course.settings
    if now.optimizer is None:
        return "the optimizer was not given"
    if now.sgd is None:
        return f"it is not known for {now.optimizer}, whose steps are not along the gradient"
    if now.loss_function is None:
        return "the loss was not given, or its curvature is not known"
    if now.loss_function.endswith("sum") and now.batch_size is None:
        return "it takes the number of samples that a step's loss adds up, which was not given"
    if shape.moving:
        return "BatchNorms on batch statistics train another function than that of the kernel"
    if course.noisy is not None:
        return f"dropout ({course.noisy}) trains another function at every step"
    if not course.whole:
        return "parameters are trained that the kernel does not see"
    return None
