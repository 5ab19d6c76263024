"""A ResNet on Fashion-MNIST: when do its features form, and in which layers?

Two trackers watch one training. The first asks for kernels on the batch statistics that training
runs on, so that only weights can move them: its timeline says when features formed. The second asks
for kernels as `model.eval()` computes them, on BatchNorm's running averages, which start at 0 and 1
and move by themselves; `buffer_share` says how much of the drift is theirs.

    make data && python examples/resnet_fashion.py --picture resnet.png
"""

import argparse
from pathlib import Path

import torch
from pictures import colours, panels, save
from real_data import FOLDER, fashion_mnist
from torch import Tensor, nn
from torch.nn import functional

from ntkwatch import History, KernelTracker, ProbeBatch, judge
from ntkwatch.watch.verdict.timeline import Timeline


class Block(nn.Module):
    """Two convolutions with BatchNorm, and the input added through a third."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(width_in, width, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-8: 77,818 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1, self.block2, self.block3 = Block(16, 16), Block(16, 32), Block(32, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.block3(self.block2(self.block1(x))).mean(dim=(2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, for a first look")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the data set")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    images, labels = fashion_mnist("train", options.data)
    test_images, test_labels = fashion_mnist("test", options.data)
    count, epochs, probe_size = (1500, 2, 32) if options.quick else (10_000, 4, 64)
    probe = ProbeBatch(test_images[:probe_size], test_labels[:probe_size])
    model = ResNet()
    weights = KernelTracker(probe, batchnorm="probe")
    running = KernelTracker(probe, batchnorm="running")

    train(model, images[:count], labels[:count], [weights, running], epochs=epochs)
    accuracy = accuracy_of(model, test_images[:2000], test_labels[:2000])
    verdict = judge(weights.history)
    table(weights.history, running.history)
    layers(verdict.timeline)
    print(f"\naccuracy {accuracy:.1%}   verdict: {verdict.label}\n{verdict.reason}")
    print("\nwhen: " + verdict.timeline.sentence)
    if options.picture:
        draw(options.picture, verdict.timeline, running.history)


def train(model, images, labels, trackers, *, epochs: int) -> None:
    """SGD whose rate falls to zero, watched twice as seldom each time."""
    steps = epochs * (len(images) // 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step, looks = 0, {round(2 ** (i / 2)) for i in range(2, 30)} | {0, 1, 2, steps}
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: steps // epochs * 50].split(50):
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            if step in looks:
                for tracker in trackers:
                    tracker.observe(model, step, loss=loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            step += 1
    for tracker in trackers:
        tracker.observe(model, step, loss=loss.item())


def accuracy_of(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def table(weights: History, running: History) -> None:
    print("             on the probe's statistics       on running averages")
    print("step   loss  lin. error  layer angle     kernel angle  of weights  buffer share")
    for own, both in zip(weights, running, strict=True):
        alone = None if both.parameters_only is None else both.parameters_only.kernel_angle
        cells = (own.linearization_error, own.layer_angle_median, both.kernel_angle, alone)
        shown = ["-" if cell is None else f"{cell:.3f}" for cell in (*cells, both.buffer_share)]
        print(
            f"{own.step:4d}  {own.loss:5.2f}  {shown[0]:>10}  {shown[1]:>11}     {shown[2]:>12}  "
            f"{shown[3]:>10}  {shown[4]:>12}"
        )


def layers(timeline: Timeline) -> None:
    print("\nlayer          turned by (rad)  half of it left at step")
    for name, row in to_the_end(timeline).items():
        left = [step for step, angle in zip(timeline.steps, row, strict=True) if angle > row[0] / 2]
        print(f"{name:<13}  {row[0]:15.2f}  {left[-1]:23d}")


def to_the_end(timeline: Timeline) -> dict[str, list[float]]:
    """Of each convolution and the head: the angle of its kernel at each step to that at the end."""
    rows = timeline.layer_angles.items()
    return {name: [a or 0.0 for a in row] for name, row in rows if "norm" not in name}


def draw(place: Path, timeline: Timeline, running: History) -> None:
    figure, (left, right) = panels(2)
    rows, steps = to_the_end(timeline), timeline.steps[1:]
    for order, (name, row) in enumerate(rows.items()):
        left.plot(steps, row[1:], color=colours(order / len(rows)), label=name)
    left.set(xscale="log", title="how far each layer still has to turn (rad)", xlabel="step")
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    seen = [one for one in running if one.parameters_only is not None]
    steps = [one.step for one in seen]
    right.plot(steps, [one.kernel_angle for one in seen], label="as evaluated")
    own = [one.parameters_only.kernel_angle for one in seen]
    right.plot(steps, own, label="by its weights alone")
    right.set(xscale="log", title="angle of the kernel since the start (rad)", xlabel="step")
    right.legend(frameon=False)
    save(figure, place)


if __name__ == "__main__":
    main()
