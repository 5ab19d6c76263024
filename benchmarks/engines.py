"""Time and memory of one full kernel: this package's engines beside the usual whole-Jacobian way.

Run: ``python benchmarks/engines.py``. Each way runs in a process of its own; printed are the median
time of five kernels, the growth of the process's peak memory over that of one forward and backward
pass, and the relative difference from the loop engine. ``jacrev`` is the way of PyTorch's tutorial:
``vmap(jacrev)`` over samples, all rows of both sides kept, then one ``einsum`` per parameter.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ntkwatch import empirical_ntk

WAYS = ("jacrev", "vmap", "loop")
REPEATS = 5


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), torch.randn(32, 784)


def cnn() -> tuple[nn.Module, Tensor]:
    layers = [
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ]
    return nn.Sequential(*layers), torch.randn(32, 1, 28, 28)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(64 * 16, 10)), torch.randn(32, 16, 64)


MODELS = {"MLP 784-512-512-10": mlp, "CNN 28x28": cnn, "transformer 2 x 64": transformer}


def jacrev_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """The whole-Jacobian way, in evaluation mode."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def one(theta: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, theta, (sample[None],))[0]

    left = vmap(jacrev(one), (None, 0))(params, x)
    right = vmap(jacrev(one), (None, 0))(params, x)
    parts = [
        torch.einsum("naf,mbf->nmab", left[name].flatten(2), right[name].flatten(2))
        for name in params
    ]
    return torch.stack(parts).sum(dim=0)


def compute(way: str, model: nn.Module, x: Tensor) -> Tensor:
    if way == "jacrev":
        return jacrev_kernel(model, x)
    return empirical_ntk(model, x, engine=way).matrix


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, way: str) -> dict[str, float]:
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    model, x = MODELS[name]()
    model.eval()
    model(x).sum().backward()
    before = peak()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        kernel = compute(way, model, x)
        times.append(time.perf_counter() - began)
    memory = peak() - before
    exact = compute("loop", model, x)
    difference = float((kernel - exact).norm() / exact.norm())
    return {"seconds": statistics.median(times), "bytes": memory, "difference": difference}


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, N = 32\n")
    print(f"{'model':<20} {'way':<8} {'seconds':>8} {'MiB':>7}   difference from loop")
    for name in MODELS:
        for way in WAYS:
            command = [sys.executable, __file__, name, way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seen = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:<20} {way:<8} {seen['seconds']:8.2f} {seen['bytes'] / 2**20:7.0f}   "
                f"{seen['difference']:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
