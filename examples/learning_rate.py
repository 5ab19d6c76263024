"""Through the stable learning rate: a kernel machine below it, a catapult above.

Full-batch gradient descent on handwritten digits (below 5 or not), from one start at four learning
rates. Below `2 / lambda_max` the kernel stays; above, the loss first rises, until the kernel has
moved to where the rate is stable again.

    python examples/learning_rate.py --picture rate.png
"""

import argparse
import math
from pathlib import Path

import torch
from pictures import colours, panels, save
from sklearn.datasets import load_digits
from torch import nn

from ntkwatch import History, KernelTracker, ProbeBatch, judge, top_eigenvalues, training_of


class Wide(nn.Module):
    """One hidden layer, wide, in NTK parameterization; its output is 0 at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, width, bias=False), nn.Linear(width, 1, bias=False)
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight)
        self.start = [layer.weight.detach().clone() for layer in (self.hidden, self.out)]
        self.scale = width**-0.5

    def forward(self, x):
        w, a = self.start
        then = torch.relu(x @ w.T) @ a.T
        return self.scale * (self.out(torch.relu(self.hidden(x))) - then)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller, for a first look")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args()
    quick = options.quick
    images, digits = load_digits(return_X_y=True)
    count = 64 if quick else 256
    x = torch.tensor(images[:count], dtype=torch.float32)
    x = x / x.norm(dim=1, keepdim=True)
    y = torch.tensor(digits[:count] < 5).float()[:, None] * 2 - 1

    runs: dict[float, History] = {}
    print("rate/limit  highest loss  last loss  rate/limit at the end  verdict")
    for share in (0.25, 0.9, 1.25, 1.5):
        torch.manual_seed(0)
        model = Wide(512 if quick else 2048)
        # The mean square of N values has the curvature 2/N lambda, so it is stable below N/lambda.
        limit = count / float(top_eigenvalues(model, x, k=1).values[0])
        runs[share] = history = train(model, x, y, share * limit, steps=100 if quick else 400)
        losses = [seen.loss for seen in history if seen.loss is not None]
        print(
            f"{share:10.2f}  {max(losses) / losses[0]:11.1f}x  {losses[-1] / losses[0]:9.3f}  "
            f"{history[-1].edge_of_stability:21.2f}  {judge(history).label}",
            flush=True,
        )
    if options.picture:
        draw(options.picture, runs)


def train(model: nn.Module, x, y, rate: float, *, steps: int):
    """Full-batch descent, watched on the whole training set."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    loss_function = nn.MSELoss()
    tracker = KernelTracker(ProbeBatch(x, y, whole_training_set=True), metrics="full")
    known = training_of(optimizer, loss_function=loss_function, batch_size=len(x))
    for step in range(steps + 1):
        loss = loss_function(model(x), y)
        if not math.isfinite(loss.item()):
            break
        if step < 30 or step % (steps // 20) == 0:
            tracker.observe(model, step, loss=loss.item(), training=known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tracker.history


def draw(place: Path, runs: dict[float, History]) -> None:
    figure, (left, right) = panels(2)
    for number, (share, history) in enumerate(runs.items()):
        colour = colours(0.85 * number / (len(runs) - 1))
        steps = [seen.step + 1 for seen in history]  # from 1 on, for the logarithm
        left.plot(steps, [seen.loss for seen in history], color=colour, label=f"{share:g}")
        right.plot(steps, [seen.edge_of_stability for seen in history], color=colour)
    right.axhline(1, color="k", linestyle=":")
    left.set(yscale="log", title="training loss")
    left.legend(frameon=False, title="learning rate over\nits limit at the start")
    right.set(title=r"$\lambda_{max}$ over 2 / learning rate")
    for panel in (left, right):
        panel.set(xscale="log", xlabel="steps + 1")
    save(figure, place)


if __name__ == "__main__":
    main()
