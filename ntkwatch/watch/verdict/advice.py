"""What to do after a verdict, in one or two sentences with the numbers that it hangs on."""

from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.bands import Strength
from ntkwatch.watch.verdict.wording import number

__all__ = ["next_step"]

_NEXT = {
    Strength.STATIC: "If features should train, check what is frozen; if not, a linear model on "
    "these features does the same for less.",
    Strength.LAZY: "A linearized fine-tune (LinearizedModel) or kernel regression would do about "
    "as well. For feature learning, lower the output scale, use muP, or {rate}.",
    Strength.TRANSITIONAL: "Look at the layers. To move further into feature learning, lower the "
    "output scale, train longer, or {rate}.",
    Strength.FEATURE_LEARNING: "Nothing to mend. Whether the features were needed takes a "
    "comparison with kernel regression at the start: give held_out= samples (--held-out to a "
    "report on checkpoints).",
}
_QUALIFIED = {
    "kernel rescaled": "The kernel grew without turning, as logits do under cross-entropy: a "
    "linearized fine-tune would do about as well. For feature learning, lower the output scale, "
    "use muP, or {rate}.",
    "mixed by layer": "The layers that stayed could be frozen, or learn with a larger learning "
    "rate of their own; those that turned hold the features.",
    "low-rank or scale change": "A few directions grew and the rest stayed: subspace_overlap and "
    "the leading eigenvalues tell which. Features needed or not takes held_out= samples "
    "(--held-out to a report on checkpoints).",
    "after an early reorganisation": "From step {anchor} on read the run by itself: a linearized "
    "fine-tune of those weights (LinearizedModel) is the test of a kernel machine.",
}
_NEXT_MOVED = {
    "yes": "Nothing to mend: the features were needed, and they were learned.",
    "no": "Nothing to mend. On this task kernel regression at the start, or a linearized "
    "fine-tune, would do about as well: a harder task would tell what the features are worth.",
}

_AFTER_GUARD = {
    "nothing": "Add NTKMonitor() to the Trainer's callbacks, or call KernelTracker.observe.",
    "diverged": "Lower the learning rate, warm it up or clip gradients: max_stable_lr "
    '(metrics="full") says what the kernel bears. The observations before it are kept.',
    "one observation": "Observe again after some training.",
    "last observation failed": "See the gap's reason; the observations before it are kept.",
    "reference is not the start": "Resume from a checkpoint that holds the monitor's state (where "
    "checkpoints are measured: keep one of step 0, or add --first-is-start if the earliest is the "
    "start; where you call observe yourself: do so before the first update, at step 0, or say "
    "reference_is_start=True), or read the numbers as drift since that point.",
    "probe too small": "Use probe_size=64 or more.",
    "too early": "Train on, and judge again when the loss has fallen.",
    "outputs did not move": "Check that the watched parameters receive gradients.",
    "only a common shift": "Train on, and judge again when the network tells inputs apart; if it "
    "never does, check the targets.",
    "no linearization error": "See the reason above; a verdict rests on this number.",
    "signals disagree": "Look at the layers, and use a larger probe to see which signal holds.",
    "derivative does not fit": "Look for weight decay, or for state that a forward pass keeps "
    "outside parameters and buffers.",
    "interval too wide": "Use a larger probe.",
}


def next_step(
    strength: Strength,
    qualifier: str | None,
    last: Observation | None = None,
    needed: str = "unknown",
) -> str:
    """Return what to do after a verdict.

    Args:
        strength: Of the verdict.
        qualifier: Likewise.
        last: The observation that it is about, or None without one.
        needed: Whether features were needed: "yes", "no" or "unknown".

    Returns:
        One or two sentences.
    """
    if strength is Strength.UNDETERMINED:
        return _AFTER_GUARD.get(qualifier or "", "Observe longer, with a larger probe.")
    if strength is Strength.FEATURE_LEARNING and needed in _NEXT_MOVED:
        return _NEXT_MOVED[needed]
    said = _QUALIFIED.get(qualifier or "", _NEXT[strength])
    warmup = None if last is None else last.since_warmup
    return said.format(rate=_rate(last), anchor="?" if warmup is None else warmup.anchor_step)


def _rate(last: Observation | None) -> str:
    """What the learning rate allows, with the numbers where they are known."""
    stable = None if last is None else last.max_stable_lr
    edge = None if last is None else last.edge_of_stability
    if stable is None or edge is None:
        return "raise the learning rate toward the stable limit"
    if edge >= 1:
        return f"keep the learning rate, which is {number(edge)} times the stable {number(stable)}"
    return (
        f"raise the learning rate, now {number(edge)} of the stable limit, toward {number(stable)}"
    )
