"""A small GPT at several widths: in one way to scale it drift vanishes, in the other it does not.

Both start from one and the same network at width 32 and then scale its read-out and Adam's learning
rates with the width (`small_gpt_model.scaling`): as in the neural tangent limit, where a wide
network is a kernel machine, and as in muP, where features move as much at every width. Runs stop at
the same loss on held-out text, since every network moves further as its loss falls.

    make data && python examples/small_gpt_widths.py --picture widths.png
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from pictures import panels, save
from real_data import FOLDER, texts
from small_gpt_model import BASE_WIDTH, SCALINGS, batch_of, loss_of, pieces, scaled
from torch import Tensor, nn

from ntkwatch import KernelTracker, Observation, ProbeBatch

# Logits four times those of an ordinary start, and rates a fourth: on the way to lazy at the base
# width, so that there is room on both sides.
_OUTPUT, _RATE = 4.0, 2.5e-3
_EVERY = 4  # steps between two looks at the held-out loss


class Centred(nn.Module):
    """``f(x) - f_0(x)``: every width starts from the same outputs, which are zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.start = net, copy.deepcopy(net).requires_grad_(False)

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        return self.net(tokens, counted) - self.start(tokens, counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two widths, one seed")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of fortunes, or any text")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    widths, seeds, until = (32, 64, 128, 256), options.seeds, 2.85
    if options.quick:
        widths, seeds, until = (32, 128), 1, 3.0
    rows = pieces(texts(options.data))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]

    print("width  seed  scaling         step  loss   lin. error  layer angle")
    seen: dict[str, list[tuple[int, Observation]]] = {name: [] for name in SCALINGS}
    for width in widths:
        for seed in range(seeds):
            # At the base width both scalings are one training, so it runs once.
            for name in SCALINGS if width > BASE_WIDTH else SCALINGS[:1]:
                end = trained(name, width, rows, seed, until=until)
                for same in SCALINGS if width == BASE_WIDTH else (name,):
                    seen[same].append((width, end))
                print(
                    f"{width:5d}  {seed:4d}  {name if width > BASE_WIDTH else 'both':<14}  "
                    f"{end.step:4d}  {end.loss:.3f}  {end.linearization_error:10.3f}  "
                    f"{end.layer_angle_median:11.4f}",
                    flush=True,
                )
    print("\nexponent of the width   lin. error  layer angle")
    for name, runs in seen.items():
        shown = [f"{slope(runs, key):.2f}" for key in ("linearization_error", "layer_angle_median")]
        print(f"{name:<22}  {shown[0]:>10}  {shown[1]:>11}")
    if options.picture:
        draw(options.picture, seen)


def trained(name: str, width: int, rows: Tensor, seed: int, *, until: float) -> Observation:
    """Train to a held-out loss; return the network there, seen from its start."""
    torch.manual_seed(seed)
    net, optimizer = scaled(name, width, rate=_RATE, output=_OUTPUT)
    model, (inputs, targets) = Centred(net), batch_of(rows[32:96])
    tracker = KernelTracker(ProbeBatch(batch_of(rows[:32])[0]), metrics="minimal")
    step = 0
    while True:
        if step % _EVERY == 0:
            with torch.no_grad():
                loss = loss_of(model(**inputs), inputs["counted"], targets).item()
            if step == 0 or loss <= until:
                seen = tracker.observe(model, step, loss=loss)
            if loss <= until:
                return seen
        batch, to_come = batch_of(rows[torch.randint(96, len(rows), (16,))])
        optimizer.zero_grad()
        loss_of(model(**batch), batch["counted"], to_come).backward()
        optimizer.step()
        step += 1


def slope(runs: list[tuple[int, Observation]], key: str) -> float:
    """The power of the width that a number goes with, by least squares in the logarithms."""
    widths = np.log([width for width, _ in runs])
    return float(np.polyfit(widths, np.log([getattr(seen, key) for _, seen in runs]), 1)[0])


def draw(place: Path, seen: dict[str, list[tuple[int, Observation]]]) -> None:
    figure, both = panels(2)
    titles = {
        "linearization_error": "linearization error",
        "layer_angle_median": "layer angle (rad)",
    }
    for panel, (key, title) in zip(both, titles.items(), strict=True):
        for name, runs in seen.items():
            widths = sorted({width for width, _ in runs})
            values = [[getattr(o, key) for w, o in runs if w == width] for width in widths]
            (line,) = panel.plot(
                widths,
                [np.exp(np.mean(np.log(those))) for those in values],
                label=f"{name}: width to the {slope(runs, key):.2f}",
            )
            for width, those in zip(widths, values, strict=True):
                panel.plot([width] * len(those), those, "o", color=line.get_color(), alpha=0.6)
        panel.set(xscale="log", yscale="log", xlabel="width", title=f"{title}, at equal loss")
        panel.set_xticks(widths, [str(width) for width in widths], minor=False)
        panel.legend(frameon=False)
    save(figure, place)


if __name__ == "__main__":
    main()
