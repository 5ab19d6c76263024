"""The words of a verdict: what happened, what to do, and the evidence line by line."""

from collections.abc import Sequence

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation, Reading
from ntkwatch.watch.verdict.bands import Strength

__all__ = [
    "evidence_lines",
    "explain_strength",
    "held_out_lines",
    "needed_sentence",
    "number",
    "place",
    "some",
    "what_happened",
]

_NAMED = 3  # names in one list that are given; the others are counted

_PLACE = {
    Strength.STATIC: "not distinguishable from none",
    Strength.LAZY: "in the lazy band",
    Strength.TRANSITIONAL: "between the bands",
    Strength.FEATURE_LEARNING: "in the feature-learning band",
}

_EXPLANATION = {
    Strength.STATIC: "The features did not move: the network is exactly a linear model of them.",
    Strength.LAZY: "The features hardly moved: the network acted as a kernel machine.",
    Strength.TRANSITIONAL: "The features moved some: neither a kernel machine nor clearly beyond.",
    Strength.FEATURE_LEARNING: "The features moved: the network is not the kernel machine it "
    "started as.",
    Strength.UNDETERMINED: "The evidence does not allow a verdict.",
}

# Where a comparison on held-out samples has answered whether features were needed.
_NEEDED = {
    "yes": " The features were needed: on held-out samples the network beats the kernel that it "
    "started as.",
    "no": " The features were not needed here: on held-out samples the kernel that the network "
    "started as does about as well, or better.",
}
_MOVED = (Strength.TRANSITIONAL, Strength.FEATURE_LEARNING)


def explain_strength(strength: Strength) -> str:
    """Return one plain sentence on what a strength means, for readers new to the subject."""
    return _EXPLANATION[strength]


def needed_sentence(strength: Strength, needed: str) -> str:
    """Return whether features that moved were needed, as a sentence to add; "" if unknown."""
    return _NEEDED.get(needed, "") if strength in _MOVED else ""


def what_happened(strength: Strength, qualifier: str | None) -> str:
    """One plain sentence on what the label means for the network."""
    if strength is Strength.UNDETERMINED:
        return f"Undetermined ({qualifier})." if qualifier else "Undetermined."
    if qualifier == "after an early reorganisation":
        return (
            f"After an early reorganisation: {_EXPLANATION[strength][0].lower()}"
            + (_EXPLANATION[strength][1:])
        )
    return _EXPLANATION[strength]


def place(strength: Strength) -> str:
    """Where a number lies, in words."""
    return _PLACE[strength]


def evidence_lines(history: History, last: Observation) -> tuple[str, ...]:
    """Always the same lines in the same order, so that two verdicts can be laid side by side."""
    loss = "training loss unknown"
    if last.loss is not None:
        loss = f"training loss {number(last.loss)}"
        if last.loss_ratio is not None:
            loss += f" ({number(last.loss_ratio)} of the start)"
    epoch = "" if last.epoch is None else f", epoch {last.epoch}"
    lines = [f"step {last.step}{epoch}, {loss}"]
    called = history.run.spec.get("forward", "")
    if called.startswith("model."):
        lines.append(
            f"measured on {called}, a part of the model: what training does besides is not seen, "
            "and forward= names another function"
        )
    outputs = history.run.spec.get("outputs", "?")
    lines.append(
        f"probe N = {last.probe_size}, {last.output_count} outputs ({outputs}), "
        f"reference: {history.run.reference or 'first observation'}"
    )
    lines += _reading_lines("since start", last)
    if last.since_warmup is not None:
        since = f"since step {last.since_warmup.anchor_step} (warm-up)"
        lines += _reading_lines(since, last.since_warmup)
    elif len(history) > 1:
        lines.append("since warm-up: no second reading (it takes a whole observation between)")
    lines += held_out_lines(last)
    floor = last.noise_floor
    if floor:
        lines.append(
            "noise floors: "
            + ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in floor.items())
        )
    lines.extend(_missing_lines(last))
    lines.extend(last.notes)
    return tuple(lines)


def held_out_lines(last: Observation) -> list[str]:
    """Return lines on the network beside regression with its kernels, on held-out samples."""
    lines, facts = [], last.held_out
    kind = "acc" if last.acc_net is not None else "score"
    if getattr(last, f"{kind}_net") is not None:
        what = "accuracy" if kind == "acc" else "R^2"
        names = {"net": "network", "kernel_ref": "kernel at the start", "kernel_final": "now"}
        scores = ", ".join(
            f"{words} {number(getattr(last, f'{kind}_{name}'))}" for name, words in names.items()
        )
        error = facts.get("net_se", facts.get("gain_se"))
        lines.append(
            f"held-out {what}: {scores} (n_train {facts.get('n_train', 0):.0f}, n_test "
            f"{facts.get('n_test', 0):.0f}, ridge {facts.get('ridge', 0):g}, s.e. {number(error)})"
        )
    if last.representer_gap is not None:
        lines.append(
            f"representer gap {number(last.representer_gap)}: share of the change on held-out "
            "samples that frozen features could not have learned"
        )
    return lines


def _missing_lines(last: Observation) -> list[str]:
    """One line for each reason, however many layers share it."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in last.left_out.items():
        by_reason.setdefault(reason.rstrip("."), []).append(key)
    return [f"not measured: {some(keys)} ({reason})" for reason, keys in by_reason.items()]


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _reading_lines(name: str, reading: Reading) -> list[str]:
    """One line, and a second one where moving buffers have a part in the first."""
    lines, own = [_reading_line(name, reading)], reading.parameters_only
    if own is not None and reading.buffer_share is None:
        lines.append(f"{name}, moving buffers put back: not measured ({_why_not(own)})")
    elif own is not None:
        lines.append(
            f"{name}, moving buffers put back: median layer angle "
            f"{_with_interval(own, 'layer_angle_median')} rad, relative kernel change "
            f"{_with_interval(own, 'relative_kernel_change')}; {some(own.moving_buffers)} make "
            f"{number(reading.buffer_share)} of the change"
        )
    return lines


def _why_not(own: Reading) -> str:
    return own.left_out.get("relative_kernel_change", "no drift to divide").rstrip(".")


def _reading_line(name: str, reading: Reading) -> str:
    parts = [
        f"linearization error {_with_interval(reading, 'linearization_error')}{_decayed(reading)}",
        f"median layer angle {_with_interval(reading, 'layer_angle_median')} rad",
        f"ln kernel scale {number(reading.kernel_scale, signed=True)}",
        f"relative kernel change {_with_interval(reading, 'relative_kernel_change')}",
    ]
    return f"{name}: " + ", ".join(parts)


def _decayed(reading: Reading) -> str:
    if reading.linearization_error_decayed is None:
        return ""
    return (
        f" ({_with_interval(reading, 'linearization_error_decayed')} around the weights as decay "
        f"alone leaves them, at {number(reading.decayed_norm_ratio)} of their norm)"
    )


def _with_interval(reading: Reading, key: str) -> str:
    text = number(getattr(reading, key))
    if key in reading.intervals and getattr(reading, key) is not None:
        low, high = reading.intervals[key]
        text += f" [{number(low)}, {number(high)}]"
    return text


def number(value: float | None, *, signed: bool = False) -> str:
    """Two significant digits; 0 only for exactly 0."""
    if value is None:
        return "unknown"
    sign = "+" if signed else ""
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 1000:
        digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 0
        return f"{value:{sign}.{digits}f}"
    return f"{value:{sign}.1e}"
