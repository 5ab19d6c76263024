"""What was found out about a model before training, as versioned, strict JSON."""

import dataclasses
import json

from ntkwatch.report.words import finite
from ntkwatch.watch.before_training.checkup import Checkup

__all__ = ["FORMAT", "render_checkup_json"]

# Raised whenever a reader of the older form would misread the newer one.
FORMAT = 1


def render_checkup_json(checkup: Checkup) -> str:
    """Return what was found out as JSON.

    Args:
        checkup: What was found out.

    Returns:
        One object, indented: ``ntkwatch_checkup`` (the version of this form) and the fields of
        ``Checkup``.
    """
    page = {"ntkwatch_checkup": FORMAT, **dataclasses.asdict(checkup)}
    return json.dumps(finite(page), indent=2, allow_nan=False) + "\n"
