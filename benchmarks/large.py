"""A model of 124 million parameters watched through real training steps, on processors.

Run: ``python benchmarks/large.py [--threads 2] [--steps 5] [--budget 2GiB]`` (some minutes, 8 GiB).

GPT-2's shape with random weights is trained with AdamW on batches of 8 random sequences of 128
tokens, and observed before the first and after each step on a probe of the same size: one number
per sequence, its mean log-probability. Each line has the seconds of a training step and of the
observation after it, and the most memory that the process had resident in each. The step in the
first line is of an unwatched run. Last, one more step and one more observation are made with
torch's counter of matrix products running, beside what ``paper.py`` says of them.
"""

import argparse
from collections.abc import Callable

import torch
from measuring import forget_peak, machine, peak_bytes, seconds, table
from models import Gpt2, mean_log_probability
from paper import estimate
from torch.utils.flop_counter import FlopCounterMode

from ntkwatch import KernelTracker, ProbeBatch
from ntkwatch.jacobian.memory import parse_bytes

SAMPLES, LENGTH = 8, 128
_MIB = 2**20
_HEAD = ("step", "training s", "peak MiB", "observation s", "peak MiB", "of a step", "angle")


class Run:
    """A training with its tracker.

    Args:
        model: In training mode.
        words: Size of the vocabulary.
        budget: Of the tracker, in bytes.
    """

    def __init__(self, model: Gpt2, words: int, budget: int) -> None:
        self.model, self.words = model, words
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.probe = torch.randint(words, (SAMPLES, LENGTH))
        self.tracker = KernelTracker(
            ProbeBatch(self.probe), forward=mean_log_probability, memory_budget=budget
        )

    def train(self) -> None:
        """One step on a new batch."""
        batch = torch.randint(self.words, (SAMPLES, LENGTH))
        self.optimizer.zero_grad()
        (-mean_log_probability(self.model, batch)).mean().backward()
        self.optimizer.step()

    def observe(self) -> None:
        self.tracker.observe(self.model, len(self.tracker.history))


def _costs(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and the most MiB resident meanwhile."""
    forget_peak()
    return seconds(run), peak_bytes() / _MIB


def _counted(run: Callable[[], None]) -> float:
    """Multiplications in matrix products."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops() / 2


def _line(step: int, run: Run, training: tuple[float, float]) -> tuple[str, ...]:
    watching = _costs(run.observe)
    angle = run.tracker.history[-1].kernel_angle
    return (
        str(step),
        *(f"{training[0]:.2f}", f"{training[1]:.0f}", f"{watching[0]:.2f}", f"{watching[1]:.0f}"),
        f"{watching[0] / training[0]:.2f}",
        "-" if angle is None else f"{angle:.4f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--budget", default="2GiB")
    parser.add_argument("--shape", type=int, nargs=4, default=[768, 12, 12, 50257])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    run = Run(Gpt2(*given.shape), given.shape[3], parse_bytes(given.budget))
    count = sum(p.numel() for p in run.model.parameters())
    print(
        f"{count / 1e6:.1f}M parameters ({count * 4 / _MIB:.0f} MiB), {SAMPLES} x {LENGTH} tokens, "
        f"memory_budget {given.budget}; {machine(given.threads)}"
    )
    print(f"before any step: {peak_bytes() / _MIB:.0f} MiB", flush=True)
    run.train()  # the first makes the optimizer's state
    training = _costs(run.train)
    rows = [_line(0, run, training)]
    for step in range(1, given.steps + 1):
        rows.append(_line(step, run, _costs(run.train)))
    print(table(_HEAD, rows), flush=True)
    paper = estimate(
        run.model, run.probe, mean_log_probability, memory_budget=parse_bytes(given.budget)
    )
    counts = _counted(run.train), _counted(run.observe)
    print("\nmultiplications in matrix products, in G:     counted   on paper")
    for name, found, said in (
        ("a training step", counts[0], paper.training),
        ("a later observation", counts[1], paper.observation),
    ):
        print(f"{name:42} {found / 1e9:10.1f} {said / 1e9:10.1f}")
    print(paper)


if __name__ == "__main__":
    main()
