"""What a logger shows besides scalars: pictures and texts, through its own public methods.

A logger is known by its methods or its class's name, never by importing its package. One that is
not known here gets its scalars and nothing else.
"""

import logging
import re
from typing import Any, Protocol

from ntkwatch.integrations.dashboard.canvas import Pixels

__all__ = ["Display", "MLFlowDisplay", "SummaryDisplay", "WandbDisplay", "display_of"]

_log = logging.getLogger("ntkwatch")

_WRITER = ("add_custom_scalars", "add_histogram", "add_image", "add_scalar", "add_text")
_CLIENT = ("log_image", "log_text")


class Display(Protocol):
    """Shows pictures and texts."""

    def picture(self, tag: str, image: Pixels, x: int) -> None:
        """Show a picture at a place on the logger's x axis."""

    def text(self, tag: str, markdown: str, x: int) -> None:
        """Show a text at a place on the logger's x axis."""


class SummaryDisplay:
    """TensorBoard, through a summary writer.

    Args:
        writer: torch's, or one with its methods.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def picture(self, tag: str, image: Pixels, x: int) -> None:
        """Show a picture on the page of images."""
        self.writer.add_image(tag, image, x, dataformats="HWC")

    def text(self, tag: str, markdown: str, x: int) -> None:
        """Show a text on the page of texts."""
        self.writer.add_text(tag, markdown, x)


class WandbDisplay:
    """Weights & Biases, through Lightning's logger: it keeps steps in order, a run does not.

    Args:
        logger: Lightning's ``WandbLogger``.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def picture(self, tag: str, image: Pixels, x: int) -> None:
        """Show a picture in a panel of media."""
        self._logger.log_image(tag, [image], step=x)

    def text(self, tag: str, markdown: str, x: int) -> None:
        """Show a text as a table of one cell."""
        self._logger.log_text(tag, columns=["text"], data=[[markdown]], step=x)


class MLFlowDisplay:
    """MLflow, through the client of Lightning's logger.

    Args:
        logger: Lightning's ``MLFlowLogger``.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def picture(self, tag: str, image: Pixels, x: int) -> None:
        """Keep a picture with its step among the run's images."""
        client, key = self._logger.experiment, _of_mlflow(tag)
        client.log_image(self._logger.run_id, image, key=key, step=x)

    def text(self, tag: str, markdown: str, x: int) -> None:
        """Keep the latest text as an artifact."""
        client = self._logger.experiment
        client.log_text(self._logger.run_id, markdown, f"{_of_mlflow(tag)}.md")


def _of_mlflow(tag: str) -> str:
    """MLflow refuses other characters in keys and paths, and Lightning drops them likewise."""
    return re.sub(r"[^a-zA-Z0-9_/. -]+", "", tag)


def display_of(logger: Any) -> Display | None:
    """Return how a logger shows things, or None where it takes scalars only.

    Args:
        logger: With ``log_metrics``, and perhaps an ``experiment``.

    Returns:
        A display. Asking a logger for its experiment makes its files.
    """
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    # Its log_image is not everybody's: other loggers' methods of that name want other arguments.
    if "WandbLogger" in kinds:
        return WandbDisplay(logger)
    experiment = _experiment(logger)
    if _has(experiment, _WRITER):
        return SummaryDisplay(experiment)
    if "MLFlowLogger" in kinds and _has(experiment, _CLIENT):
        return MLFlowDisplay(logger)
    return None


def _experiment(logger: Any) -> Any:
    """What a logger writes with; some reach for a server at this moment, and may fail to."""
    try:
        return getattr(logger, "experiment", None)
    except Exception as error:  # whatever it is, its scalars may still arrive
        _log.debug("%s has no experiment: %s", type(logger).__name__, error)
        return None


def _has(thing: Any, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(thing, method, None)) for method in methods)
