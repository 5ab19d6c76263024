"""Largest eigenvalues of a kernel of 20,000 rows that is never held: time, memory and residuals.

Run: ``python benchmarks/matrix_free.py [N] [budget]``. The kernel is that of a small CNN on N
random images (2000 by default) with 10 outputs; held whole in float64 it would take
``(10 N)^2 * 8`` bytes. Printed beside each eigenvalue are the learning rates at which gradient
descent in its direction would stop contracting, ``2 / lambda`` for a loss of half the sum of
squares and ``N C / lambda`` for ``torch.nn.MSELoss``.
"""

import resource
import sys
import time

import torch
from torch import nn

from ntkwatch.jacobian.matrix_free import top_eigenvalues

OUTPUTS = 10


def cnn() -> nn.Module:
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, OUTPUTS),
    ]
    return nn.Sequential(*layers)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    budget = sys.argv[2] if len(sys.argv) > 2 else "256MiB"
    torch.manual_seed(0)
    model, x = cnn(), torch.randn(n, 1, 16, 16)
    model(x[:1]).sum().backward()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, budget {budget}")
    print(f"N = {n}, C = {OUTPUTS}: {n * OUTPUTS} rows, {(n * OUTPUTS) ** 2 * 8 / 2**20:.0f} MiB\n")
    print("dtype          k  products  seconds  peak MiB (before)  residual / lambda_1  converged")
    for dtype, k in ((torch.float32, 8), (torch.float64, 8)):
        before, began = peak(), time.perf_counter()
        found = top_eigenvalues(model, x, k, dtype=dtype, memory_budget=budget)
        seconds = time.perf_counter() - began
        print(
            f"{dtype!s:<13} {k:>2}  {found.products:>8}  {seconds:>7.1f}  {peak():>8.0f} "
            f"({before:.0f})     {float((found.residuals / found.values[0]).max()):>19.1e}  "
            f"{found.converged}",
            flush=True,
        )
    print("\n eigenvalue     residual   2 / lambda   N C / lambda")
    for value, residual in zip(found.values.tolist(), found.residuals.tolist(), strict=True):
        rates = 2 / value, n * OUTPUTS / value
        print(f"{value:11.5g}  {residual:11.2e}  {rates[0]:11.3e}  {rates[1]:13.4g}")


if __name__ == "__main__":
    main()
