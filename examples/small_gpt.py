"""A small GPT on real text: how far the kernel of each of its blocks turns.

Three questions that a language model asks of whoever watches it:

Which outputs? Here are 64 logits at each of 64 positions. The main tracker takes 8 fixed random
directions of all the logits where a character is to be predicted: an unbiased picture of the whole
kernel at 8 backward passes, and the same directions at every step. Two others look at the end only,
at one number each: the logit of the character to come, and that of a space, where a word ends.

Which tokens? Texts are of unequal length. Padding is masked from attention, from the loss and, by
the model's zeros there, from the kernel.

Which weights? The embedding is the read-out, too: tied weights count once, with both of their uses.

    make data && python examples/small_gpt.py --picture gpt.png
"""

import argparse
import re
import statistics
from pathlib import Path

import torch
from pictures import colours, panels, save
from real_data import FOLDER, texts
from small_gpt_model import GPT, SPACE, batch_of, loss_of, pieces, scaled
from torch import Tensor

from ntkwatch import History, KernelTracker, ProbeBatch, judge
from ntkwatch.watch.record.records import Reading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, for a first look")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of fortunes, or any text")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps, depth = (100, 2) if options.quick else (800, 4)

    rows = pieces(texts(options.data))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    held_out, learned = rows[:96], rows[96:]
    torch.manual_seed(options.seed)
    model, optimizer = scaled("muP", 64, rate=3e-3, depth=depth)
    inputs, targets = batch_of(held_out[:32])
    every = KernelTracker(ProbeBatch(inputs))
    # What depends on the target goes into forward=, with the target among the inputs: each sample
    # must find its own, in whatever order and number samples come.
    to_come = KernelTracker(ProbeBatch({**inputs, "targets": targets}), forward=logit_to_come)
    # What depends on the outputs alone is a function of theirs.
    space = KernelTracker(ProbeBatch(inputs), outputs=word_ends)
    trackers = {"8 random directions": every, "logit to come": to_come, "space": space}

    train(model, optimizer, learned, held_out[32:], trackers, steps)
    table(every.history)
    print("\noutputs of the kernel  kernel angle  layer angle  lin. error")
    for name, tracker in trackers.items():
        seen = tracker.history[-1]
        numbers = (seen.kernel_angle, seen.layer_angle_median, seen.linearization_error)
        print(f"{name:<21}  {numbers[0]:12.3f}  {numbers[1]:11.3f}  {numbers[2]:10.2f}")
    verdict = judge(every.history)
    print(f"\nverdict: {verdict.label}\n{verdict.reason}")
    if options.picture:
        draw(options.picture, every.history)


def logit_to_come(model: GPT, inputs: dict[str, Tensor]) -> Tensor:
    """The logit of the character to come above the mean of all, averaged over positions: (N,)."""
    counted = inputs["counted"]
    logits = model(inputs["tokens"], counted)
    wanted = logits.gather(-1, inputs["targets"][..., None])[..., 0] - logits.mean(dim=-1)
    return (wanted * counted).sum(dim=1) / counted.sum(dim=1)


def word_ends(logits: Tensor) -> Tensor:
    """The logit of a space, averaged over positions: (N, 1)."""
    return logits[..., SPACE].mean(dim=1, keepdim=True)


def train(model, optimizer, learned, held_out, trackers, steps: int) -> None:
    inputs, targets = batch_of(held_out)
    looks = {round(2 ** (i / 2)) for i in range(2, 30)} | {0, 1, steps}
    for step in range(steps + 1):
        if step in looks:
            with torch.no_grad():
                loss = loss_of(model(**inputs), inputs["counted"], targets).item()
            # The first is the main one; the others look at the start and at the end.
            for tracker in list(trackers.values())[: None if step in (0, steps) else 1]:
                tracker.observe(model, step, loss=loss)
        batch, to_come = batch_of(learned[torch.randint(len(learned), (16,))])
        optimizer.zero_grad()
        loss_of(model(**batch), batch["counted"], to_come).backward()
        optimizer.step()


def by_block(seen: Reading) -> dict[str, float]:
    """The median angle of the kernels of each part of the model that has matrices, in radians."""
    parts: dict[str, list[float]] = {}
    for layer, angle in seen.layer_angle.items():
        name = re.sub(r"^blocks\.(\d+).*", lambda found: f"block {int(found[1]) + 1}", layer)
        if "norm" not in layer and angle is not None:
            parts.setdefault(name, []).append(angle)
    return {name: statistics.median(angles) for name, angles in parts.items()}


def table(history: History) -> None:
    names = list(by_block(history[-1]))
    print("step   loss  lin. error  " + "  ".join(names) + "   (angles since the start, rad)")
    for seen in history:
        error = seen.linearization_error
        angles = by_block(seen)
        shown = "  ".join(f"{angles[name]:>{len(name)}.3f}" for name in names)
        first = "-" if error is None else f"{error:.2f}"
        print(f"{seen.step:4d}  {seen.loss:5.2f}  {first:>10}  {shown}")


def draw(place: Path, history: History) -> None:
    figure, both = panels(2)
    later = [seen.since_warmup for seen in history if seen.since_warmup is not None]
    titles = ("angle since the start (rad)", f"since step {later[0].anchor_step} (rad)")
    names = list(by_block(history[-1]))
    for panel, title, since in zip(
        both, titles, (lambda o: o, lambda o: o.since_warmup), strict=True
    ):
        seen = [(o.step, by_block(since(o))) for o in history if o.step and since(o) is not None]
        for order, name in enumerate(names):
            heights = [angles[name] for _, angles in seen]
            panel.plot(
                [step for step, _ in seen], heights, color=colours(order / len(names)), label=name
            )
        panel.set(xscale="log", xlabel="step", title=title, xlim=(1, history[-1].step))
    both[0].legend(frameon=False)
    save(figure, place)


if __name__ == "__main__":
    main()
