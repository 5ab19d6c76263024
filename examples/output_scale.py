"""One CNN from feature-learning to lazy, and what its features were worth.

The network computes `alpha (f(x) - f_0(x))` and its learning rate is divided by `alpha^2`: a large
`alpha` needs hardly any motion of the weights (Chizat, Oyallon and Bach 2019, arXiv:1812.07956). It
sees two handwritten digits side by side, each from 0 to 3, and says whether their sum is odd.

Runs stop at the same training loss, or after 400 epochs. Beside the accuracy of the network on
digits that it has not seen stands that of regression on the same training set with the kernel that
the network started as, and with the kernel that it became.

    python examples/output_scale.py --picture scale.png
"""

import argparse
import copy
from pathlib import Path

import torch
from pictures import panels, save
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ntkwatch import KernelTracker, Observation, ProbeBatch, judge, training_of

_BATCH, _MOST_EPOCHS = 50, 400


class Scaled(nn.Module):
    """``alpha (f(x) - f_0(x))`` of a small CNN: one value per pair of digits."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(256, 1),
        )
        for layer in self.net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # torch's own start is smaller, and takes a larger `alpha` to be lazy.
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.start = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.net(x) - self.start(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two scales, for a first look")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    scales = (0.3, 100.0) if options.quick else (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    train, test = sums(1000, held_out=1000)

    print("       epochs  loss  lin.   layer  accuracy of  kernel  kernel  features")
    print("alpha                 error  angle  the network  before   after  needed    verdict")
    runs = []
    for alpha in scales:
        torch.manual_seed(options.seed)
        history, epochs = watched(Scaled(alpha), train, test, until=0.5 if options.quick else 0.2)
        verdict, last = judge(history), history[-1]
        runs.append((alpha, last))
        print(
            f"{alpha:5g}  {epochs:6d}  {last.loss:4.2f}  {last.linearization_error:5.2f}  "
            f"{last.layer_angle_median:5.2f}  {last.acc_net:11.1%}  {last.acc_kernel_ref:6.1%}  "
            f"{last.acc_kernel_final:6.1%}  {verdict.use.features_needed:<8}  {verdict.label}",
            flush=True,
        )
    if options.picture:
        draw(options.picture, runs)


def sums(count: int, *, held_out: int) -> tuple[ProbeBatch, ProbeBatch]:
    """Two digits side by side, (N, 1, 8, 16), and 1 where their sum is odd, else -1."""
    images, digits = load_digits(n_class=4, return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    digits, generator = torch.tensor(digits), torch.Generator().manual_seed(0)

    def drawn(those: Tensor, size: int, *, whole: bool) -> ProbeBatch:
        left, right = those[torch.randint(len(those), (2, size), generator=generator)]
        odd = ((digits[left] + digits[right]) % 2).float()[:, None] * 2 - 1
        both = torch.cat([images[left], images[right]], dim=3)
        return ProbeBatch(both, odd, whole_training_set=whole)

    # No image of a held-out pair is in any pair that is trained on.
    order = torch.randperm(len(images), generator=generator)
    return drawn(order[:480], count, whole=True), drawn(order[480:], held_out, whole=False)


def watched(model: Scaled, train: ProbeBatch, test: ProbeBatch, *, until: float):
    """Train with SGD until the mean square is so low; watch on the whole training set."""
    rate = 0.02 / model.alpha**2
    optimizer = torch.optim.SGD(model.net.parameters(), lr=rate, momentum=0.9)
    # Regression on the training set is what a frozen kernel would do: the probe is all of it.
    tracker = KernelTracker(train, metrics="full", held_out=test)
    facts = training_of(optimizer, batch_size=_BATCH)
    x, y, epoch, loss = train.inputs, train.targets, 0, 1.0
    tracker.observe(model, 0, loss=loss, training=facts)
    while loss > until and epoch < _MOST_EPOCHS:
        for rows in torch.randperm(len(x)).split(_BATCH):
            off = 0.5 * (model(x[rows]) - y[rows]).square().mean()
            optimizer.zero_grad()
            off.backward()
            optimizer.step()
        with torch.no_grad():
            loss, epoch = (model(x) - y).square().mean().item(), epoch + 1
    tracker.observe(model, epoch * len(x) // _BATCH, loss=loss, training=facts)
    return tracker.history, epoch


def draw(place: Path, runs: list[tuple[float, Observation]]) -> None:
    figure, (left, right) = panels(2)
    scales, ends = [alpha for alpha, _ in runs], [end for _, end in runs]
    left.plot(scales, [end.linearization_error for end in ends], "o-", label="linearization error")
    left.plot(scales, [end.layer_angle_median for end in ends], "o-", label="layer angle (rad)")
    left.set(xscale="log", yscale="log", title="how far from lazy", xlabel="output scale")
    right.plot(scales, [end.acc_net for end in ends], "o-", label="network")
    right.plot(scales, [end.acc_kernel_final for end in ends], "o--", label="its kernel afterwards")
    right.plot(scales, [end.acc_kernel_ref for end in ends], "k:", label="its kernel at the start")
    right.set(xscale="log", title="accuracy on digits not seen", xlabel="output scale")
    for panel in (left, right):
        panel.legend(frameon=False)
    save(figure, place)


if __name__ == "__main__":
    main()
