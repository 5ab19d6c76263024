"""Rung 10: the sign of a product of two inputs, which features help to learn and a kernel cannot.

Recipe R on 400 of 2^40 corners of a cube: a frozen kernel tells about 70 % of fresh corners right,
however it is trained; a network that moves its features tells all of them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk, judge
from ntkwatch.kernel.alignment import rkhs_norm_ratio, target_alignment, target_matrix
from ntkwatch.kernel.drift import kernel_distance, relative_kernel_change
from ntkwatch.kernel.regression import representer_gap
from ntkwatch.kernel.triple import triple

from regimes.recipes import TwoLayer, f64, relu2

__all__ = ["ALPHAS", "Parity", "parities"]

# Seeds of each output scale.
ALPHAS = {0.03: 2, 1.0: 4, 3.0: 4}
INPUTS, WIDTH, TRAINING, TEST, PROBE, STOP = 40, 400, 400, 2000, 64, 0.02
RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What the package says of one training."""

    steps: int
    acc_net: float
    acc_start: float
    acc_end: float
    gain_se: float
    gap: float
    error: float
    distance: float
    change: float
    alignment_start: float
    alignment: float
    norm_ratio: float
    label: str
    task_aligned: str

    @property
    def rise(self) -> float:
        """Of the target alignment."""
        return self.alignment - self.alignment_start

    @property
    def features_needed(self) -> str:
        """By how much the network beats a kernel machine with the features of its start.

        Yes from three standard errors, 0.05 and half of its errors on; no below two or 0.02.
        """
        gain = self.acc_net - self.acc_start
        scores = (self.acc_net, self.acc_start)
        error = math.sqrt(sum(score * (1 - score) / TEST for score in scores))
        half = 1 - self.acc_net <= 0.5 * (1 - self.acc_start)
        if gain > 3 * error and gain >= 0.05 and half:
            return "yes"
        return "no" if gain < 2 * error or gain < 0.02 else "unknown"


def _drawn(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (TRAINING + TEST, INPUTS), generator=generator).double() * 2 - 1
    w = torch.randn(WIDTH, INPUTS, generator=generator, **f64)
    a = torch.randn(WIDTH, generator=generator, **f64)
    return w, a, signs / math.sqrt(INPUTS), signs[:, 0] * signs[:, 1]


def parities() -> dict[float, list[Parity]]:
    """Train all scales and seeds in one stack, then measure each."""
    runs = [(alpha, seed) for alpha, seeds in ALPHAS.items() for seed in range(seeds)]
    parts = [_drawn(seed) for _, seed in runs]
    w, a, x, y = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    alpha = torch.tensor([alpha for alpha, _ in runs], **f64)
    end_w, end_a, steps = _trained(w, a, x[:, :TRAINING], y[:, :TRAINING], alpha)
    found: dict[float, list[Parity]] = {alpha: [] for alpha in ALPHAS}
    for i, (scale, _) in enumerate(runs):
        net = TwoLayer(INPUTS, WIDTH, relu2, scale)
        net.start_at(w[i], a[i])
        found[scale].append(_measured(net, (end_w[i], end_a[i]), x[i], y[i], int(steps[i])))
    return found


def _trained(
    w: Tensor, a: Tensor, x: Tensor, y: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As recipe R, with the eigenvalue taken anew at every tenth step.

    In single precision: what is measured afterwards is not, and 2 % of the residual need no more.
    """
    ends = [w.clone(), a.clone(), torch.zeros(len(w), dtype=torch.long)]
    w, a, x, y, alpha = (t.float() for t in (w, a, x, y, alpha))
    unit, alive = alpha / math.sqrt(WIDTH), torch.arange(len(w))
    start = torch.einsum("snm,sm->sn", relu2(x @ w.mT), a)
    rate, mode = torch.zeros_like(alpha), torch.ones_like(y)
    for step in range(20_000):
        z = x @ w.mT
        h = relu2(z)
        residual = unit[:, None] * (torch.einsum("snm,sm->sn", h, a) - start) - y
        done = residual.norm(dim=1) <= STOP * y.norm(dim=1)
        if bool(done.any()):
            for end, now in zip(ends, (w, a, step), strict=True):
                end[alive[done]] = now[done].to(end) if isinstance(now, Tensor) else now
            keep = ~done
            w, a, x, y, unit, alive, start, rate, mode = (
                t[keep] for t in (w, a, x, y, unit, alive, start, rate, mode)
            )
            if len(alive) == 0:
                break
            z, h, residual = z[keep], h[keep], residual[keep]
        s = math.sqrt(2) * (z > 0) * a[:, None]
        if step % 10 == 0:
            for _ in range(50 if step == 0 else 3):
                into_a, into_w = torch.einsum("snm,sn->sm", h, mode), (s * mode[:, :, None]).mT @ x
                mode = torch.einsum("snm,sm->sn", h, into_a) + (s * (x @ into_w.mT)).sum(dim=2)
                top = mode.norm(dim=1)
                mode = mode / top[:, None]
            rate = 0.3 / (unit.square() * top)
        pull = (rate * unit)[:, None] * residual
        a = a - torch.einsum("snm,sn->sm", h, pull)
        w = w - (s * pull[:, :, None]).mT @ x
    assert len(alive) == 0, "a network did not fit its training set"
    return ends[0], ends[1], ends[2]


def _measured(
    net: TwoLayer, end: tuple[Tensor, Tensor], x: Tensor, y: Tensor, steps: int
) -> Parity:
    train, test, targets = x[:TRAINING], x[TRAINING:], y[:, None]
    probe = ProbeBatch(test[:PROBE], y[TRAINING : TRAINING + PROBE].long())
    tracker = KernelTracker(probe)
    tracker.observe(net, 0, loss=1.0)
    whole = ProbeBatch(train, targets[:TRAINING])
    on_training = KernelTracker(whole, metrics="standard")
    on_training.observe(net, 0, loss=1.0)
    reference = empirical_ntk(net, train).matrix, empirical_ntk(net, test, other=train).matrix
    with torch.no_grad():
        begun = net(train), net(test)
    net.move_to(*end)
    final = empirical_ntk(net, train).matrix, empirical_ntk(net, test, other=train).matrix
    with torch.no_grad():
        now = net(train), net(test)
    seen = tracker.observe(net, steps, loss=STOP**2)
    on_training.observe(net, steps, loss=STOP**2)
    both = targets[:TRAINING], targets[TRAINING:]
    scores = triple(now[1], reference, final, both, start=begun, ridge=RIDGE)
    before, after = reference[0][..., 0, 0], final[0][..., 0, 0]
    wanted = target_matrix(targets[:TRAINING], device=x.device)
    verdict = judge(tracker.history)
    return Parity(
        steps=steps,
        acc_net=float(scores.acc_net),
        acc_start=float(scores.acc_kernel_ref),
        acc_end=float(scores.acc_kernel_final),
        gain_se=float(scores.gain_se),
        gap=float(representer_gap(*reference, now[0] - begun[0], now[1] - begun[1], ridge=RIDGE)),
        error=float(seen.linearization_error or math.nan),
        distance=float(kernel_distance(after, before)),
        change=float(relative_kernel_change(after, before)),
        alignment_start=float(target_alignment(before, wanted).value),
        alignment=float(target_alignment(after, wanted).value),
        norm_ratio=float(rkhs_norm_ratio(after, before, wanted)[0]),
        label=verdict.label,
        task_aligned=judge(on_training.history).use.task_aligned,
    )
