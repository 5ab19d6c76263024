"""Observations made by hand, for tests of what is concluded from them."""

from typing import Any

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap, Observation, RunInfo

_ABOUT: dict[str, Any] = {"anchor_step": 0, "probe_size": 64, "output_count": 10, "seconds": 0.1}


def seen(
    error: float | None, angle: float | None, change: float | None, *, step: int = 100, **values
) -> Observation:
    """An observation after some training, with the three numbers that decide."""
    about = {
        **_ABOUT,
        "loss": 0.2,
        "loss_start": 2.0,
        "output_change": 1.0,
        "linearization_error": error,
        "layer_angle_median": angle,
        "relative_kernel_change": change,
    }
    return Observation(step=step, **{**about, **values})


def history_of(*later: Observation, gaps: tuple[Gap, ...] = (), **first) -> History:
    """A history with a reference at step 0, of which ``first`` tells more."""
    run = RunInfo(spec={"outputs": "full"}, reference="before the first update")
    start = Observation(step=0, **{**_ABOUT, "output_change": 0.0, **first})
    return History(run, (start, *later), gaps)
