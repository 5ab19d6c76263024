"""How well sketches know the drift of a kernel whose samples are coupled, and what they cost.

Run: ``python benchmarks/sketches.py`` (under a minute). A CNN with BatchNorm learns the digits
of scikit-learn at two output scales; the exact kernels of the batch function on 48 of them (480 x
480, batch statistics differentiated) come from plain autograd. Printed over 200 choices of the
columns: the standard deviation of each number as a share of the exact one, how many intervals of
95 % hold it, and the time of one sketch beside that of the exact kernel.
"""

import copy
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from ntkwatch.jacobian.sketch import sketch_kernel
from ntkwatch.kernel.drift import kernel_angle, kernel_scale, relative_kernel_change
from ntkwatch.kernel.sketched import drift_of_grams, drift_of_images, gaussian_columns

PROBE, STEPS, CHOICES = 48, 300, 200


def cnn() -> nn.Module:
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ]
    return nn.Sequential(*layers)


def train(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> None:
    """Minimise the loss of ``alpha (f - f_0)``, at a rate divided by ``alpha`` squared."""
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / alpha**2, momentum=0.9)
    for _ in range(STEPS):
        batch = torch.randperm(len(x))[:64]
        with torch.no_grad():
            before = start(x[batch])
        loss = functional.cross_entropy(alpha * (model(x[batch]) - before), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def exact_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """One backward pass per output of each sample, in training mode."""
    twin = copy.deepcopy(model).train()
    outputs, params = twin(x).flatten(), list(twin.parameters())
    rows = []
    for output in outputs:
        gradients = torch.autograd.grad(output, params, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def errors(kernel: Tensor, reference: Tensor, form: str, m: int) -> None:
    exact = torch.stack(
        [measure(kernel, reference) for measure in (relative_kernel_change, kernel_scale)]
        + [kernel_angle(kernel, reference)]
    )
    found, held = [], torch.zeros(3)
    for seed in range(CHOICES):
        v = gaussian_columns(len(kernel), range(m), seed=seed)
        if form == "one-sided":
            drift = drift_of_images(kernel @ v, reference @ v)
        else:
            drift = drift_of_grams(v.T @ kernel @ v, v.T @ reference @ v)
        found.append(torch.stack([estimate.value for estimate in drift]))
        ends = [(estimate.low, estimate.high) for estimate in drift]
        held += torch.tensor([float(a <= e <= b) for (a, b), e in zip(ends, exact, strict=True)])
    spread = (torch.stack(found).std(dim=0) / exact.abs()).tolist()
    shares = (held / CHOICES).tolist()
    print(
        f"  {form:<10} m = {m:<3}"
        + "".join(f"   {s:6.1%} ({h:.0%})" for s, h in zip(spread, shares, strict=True))
    )


def main() -> None:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float64)[:, None] / 16
    y, probe = torch.tensor(digits.target), x[:PROBE]
    for name, alpha in (("lazy", 100.0), ("rich", 1.0)):
        torch.manual_seed(0)
        model = cnn().double().train()
        began = time.perf_counter()
        reference = exact_kernel(model, probe)
        exact_seconds = time.perf_counter() - began
        train(model, x, y, alpha)
        kernel = exact_kernel(model, probe)
        print(
            f"{name}: relative change {float(relative_kernel_change(kernel, reference)):.3g}, "
            f"angle {float(kernel_angle(kernel, reference)):.3g}\n"
            "  error (share held)      relative change  ln scale       angle"
        )
        for form, m in (("one-sided", 8), ("one-sided", 16), ("two-sided", 32), ("two-sided", 64)):
            errors(kernel, reference, form, m)
    print(f"seconds: exact {exact_seconds:.2f}", end="")
    for form, m in (("one-sided", 16), ("two-sided", 32)):
        began = time.perf_counter()
        sketch_kernel(model, probe, columns=m, form=form)
        print(f", {form} m = {m} {time.perf_counter() - began:.2f}", end="")
    print(" (with every check of the model)")


if __name__ == "__main__":
    main()
