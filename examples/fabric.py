"""Lightning Fabric: a network that is lazy by its output scale, watched in a Fabric loop.

The network's output is multiplied by a large number and its learning rate divided by the square of
it, so that hardly any motion of the weights is needed: the features stay as they were.

    pip install 'ntkwatch[demo,lightning]' && python examples/fabric.py
"""

import argparse
import copy

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ntkwatch import KernelTracker, ProbeBatch, judge


class Scaled(nn.Module):
    """``alpha (f(x) - f_0(x))``: zero at the start, lazy for large ``alpha``."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.start = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x):
        return self.alpha * (self.net(x) - self.start(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs, for a first look")
    epochs = 6 if parser.parse_args().quick else 20

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0, verbose=False)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    alpha = 100.0
    model = Scaled(alpha)
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.02 / alpha**2, momentum=0.9)
    watched, optimizer = fabric.setup(model, optimizer)
    loader = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=50, shuffle=True)
    loader = fabric.setup_dataloaders(loader)

    # One process watches; under data parallelism every process has the same whole weights.
    tracker = KernelTracker(ProbeBatch(x[1500:1564], y[1500:1564]))
    step, steps = 0, epochs * len(loader)
    for _ in range(epochs):
        for inputs, labels in loader:
            wanted = functional.one_hot(labels, 10).float()
            loss = 0.5 * (watched(inputs) - wanted).square().sum(dim=1).mean()
            if fabric.is_global_zero and (step < 4 or step % (steps // 10) == 0):
                # The module itself, without Fabric's wrapping.
                tracker.observe(watched.module, step, loss=loss.item())
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            step += 1
    if fabric.is_global_zero:
        last = tracker.observe(watched.module, step, loss=loss.item())
        verdict = judge(tracker.history)
        accuracy = (watched(x[1500:]).argmax(dim=1) == y[1500:]).float().mean()
        print(f"kernel angle {last.kernel_angle:.1e} rad, linearization error ", end="")
        print(f"{last.linearization_error:.1e}, loss {last.loss:.3f}")
        print(f"accuracy {accuracy:.1%}   verdict: {verdict.label}\n{verdict.reason}")


if __name__ == "__main__":
    main()
