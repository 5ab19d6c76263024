"""What can go wrong that a user can put right.

Each error says what was seen, why that stops us and what to do. Everything raised on purpose
derives from ``NtkwatchError``, so that one ``except`` catches it all.
"""

__all__ = [
    "CheckpointError",
    "CoverageError",
    "DivergedError",
    "ForwardError",
    "HistoryError",
    "InputError",
    "KernelMismatchError",
    "MissingExtraError",
    "ModelChangedError",
    "NonFiniteError",
    "NtkwatchError",
    "OutputError",
    "ProcessError",
    "RandomForwardError",
    "SampleCouplingError",
    "SelectionError",
    "SingularKernelError",
    "WeightsChangedError",
]


class NtkwatchError(Exception):
    """Anything that this package refuses to do, with the reason and the cure in its text."""


class CheckpointError(NtkwatchError):
    """A checkpoint cannot be read, does not fit the model, or wants to run code."""


class SelectionError(NtkwatchError):
    """No trainable parameter is left to differentiate by."""


class InputError(NtkwatchError):
    """A probe batch, its targets or an argument is not of a usable form."""


class ForwardError(NtkwatchError):
    """It cannot be found out how to call the model on the probe batch."""


class OutputError(NtkwatchError):
    """The model's outputs cannot be differentiated or counted."""


class NonFiniteError(NtkwatchError):
    """Weights, outputs or the kernel hold NaN or infinity."""


class DivergedError(NonFiniteError):
    """Weights, or the outputs that they give, are no longer finite: the training has diverged."""


class SampleCouplingError(NtkwatchError):
    """The outputs of one sample depend on the other samples."""


class RandomForwardError(SampleCouplingError):
    """The model draws random numbers in evaluation mode: it is no function of its inputs."""


class KernelMismatchError(NtkwatchError):
    """Two kernels cannot be compared, or a reference kernel is zero."""


class SingularKernelError(NtkwatchError):
    """A kernel has no inverse, and no ridge was asked for."""


class CoverageError(NtkwatchError):
    """No engine can differentiate this model."""


class ModelChangedError(NtkwatchError):
    """A measurement changed the model that it looked at."""


class ProcessError(NtkwatchError):
    """One of several processes that watch a training together failed, or saw something else."""


class WeightsChangedError(ModelChangedError):
    """A measurement changed weights or buffers that the model is trained with."""


class HistoryError(NtkwatchError):
    """A run's files are missing, unreadable or of a newer version."""


class MissingExtraError(NtkwatchError):
    """An optional package is needed and not installed."""
