"""One of two processes that hold a model sharded by FSDP2; what it saw is saved for the tests.

``python -m jacobian.sharded_worker RANK FOLDER``; both run the same cases in the same order.
"""

import copy
import sys
import time
import warnings
from pathlib import Path

import torch
from jacobian.processes import join
from torch import nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.nn import functional
from torch.nn.utils import parametrizations

from ntkwatch.errors import NtkwatchError
from ntkwatch.jacobian.engine import empirical_ntk

__all__ = ["MODELS", "build"]


class Perceptron(nn.Module):
    """Two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 5)])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        for block in self.blocks:
            x = self.drop(torch.tanh(block(x)))
        return self.head(x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 7), nn.Linear(7, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        h = self.before(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.drop(self.down(functional.gelu(self.up(self.between(x)))))


class Transformer(nn.Module):
    """Convolution, group norm, positions, attention, a bare scale, a tied and a derived weight."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(2, 6, 2, 2), nn.GroupNorm(2, 6)
        self.positions = nn.Parameter(torch.randn(1, 4, 6) / 10)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.mix, self.mixed_again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.mixed_again.weight = self.mix.weight
        self.head = parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x):
        x = self.norm(self.patch(x)).flatten(2).mT + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.mixed_again(torch.tanh(self.mix(x * self.scale)))
        return self.head(x.mean(dim=1))


MODELS = {"perceptron": (Perceptron, (4,)), "transformer": (Transformer, (2, 4, 4))}


def build(kind, n=5, dtype=torch.float64):
    """A model held whole and its samples, the same in every process."""
    torch.manual_seed(3)
    make, shape = MODELS[kind]
    return make().to(dtype), torch.randn(n, *shape, dtype=dtype)


def _shard(model, reshard=True, **options):
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=reshard, **options)
    return fully_shard(model, reshard_after_forward=reshard, **options)


def _reshard(model):
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _whole(model):
    _reshard(model)
    return {name: p.detach().full_tensor() for name, p in model.named_parameters()}


def _refusal(call):
    try:
        call()
    except NtkwatchError as error:
        return type(error).__name__, str(error)
    return None


# What is measured. --------------------------------------------------------------------------------


def _kernels():
    some = {"engine": "structured"}
    found = {}
    for kind in MODELS:
        for reshard in (True, False):
            model, x = build(kind)
            model = _shard(model, reshard)
            kernels = {
                "full": empirical_ntk(model, x, **some),
                "cross": empirical_ntk(model, x[:3], other=x[2:], **some),
                "small budget": empirical_ntk(model, x, memory_budget=2000, **some),
            }
            if reshard:
                kernels |= {
                    "auto": empirical_ntk(model, x),
                    "trace": empirical_ntk(model, x, outputs="trace", **some),
                    "single": empirical_ntk(model, x[:1], **some),
                    "part": empirical_ntk(model, x, params=["head", "blocks.1"], **some),
                }
            for name, k in kernels.items():
                found[kind, reshard, name] = (k.matrix, k.layers, k.coverage)
    return found


def _state_after():
    """What a measurement leaves, from every state in which it may find a model."""
    found = {}
    for reshard in (True, False):
        for before in ("never run", "after a forward pass", "after a backward pass"):
            model, x = build("transformer")
            model = _shard(model, reshard)
            if before == "after a forward pass":
                with torch.no_grad():
                    model(x)
            if before == "after a backward pass":
                model(x).sum().backward()
            _reshard(model)
            own = dict(model.named_parameters())
            kept = {name: p.to_local().clone() for name, p in own.items()}
            grads = {n: None if p.grad is None else p.grad.to_local() for n, p in own.items()}
            values = {n: None if g is None else g.clone() for n, g in grads.items()}
            hooks = [len(m._forward_pre_hooks) for m in model.modules()]
            empirical_ntk(model, x)
            now = dict(model.named_parameters())
            found[reshard, before] = {
                "objects": all(now[name] is p for name, p in own.items()),
                "values": all(torch.equal(now[n].to_local(), kept[n]) for n in own),
                "gradients": all(
                    now[n].grad is None
                    if value is None
                    else torch.equal(now[n].grad.to_local(), value)
                    for n, value in values.items()
                ),
                "hooks": hooks == [len(m._forward_pre_hooks) for m in model.modules()],
                "training": all(m.training for m in model.modules()),
            }
    return found


def _training(measure, reshard, accumulate):
    """Weights after two steps of Adam, in dropout, with measurements at every awkward moment."""
    model, x = build("transformer")
    model = _shard(model, reshard)
    y = torch.arange(5) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(5 + torch.distributed.get_rank())

    def look():
        if measure:
            empirical_ntk(model, x)

    look()
    for _ in range(2):
        for part in range(2 if accumulate else 1):
            model.set_requires_gradient_sync(not accumulate or part == 1)
            functional.cross_entropy(model(x), y).backward()
            # As Lightning does: gradients that wait, under a flag that says they need not.
            model.set_requires_gradient_sync(True)
            look()
        optimizer.step()
        look()
        optimizer.zero_grad()
        with torch.no_grad():
            model(x)
        look()
    return _whole(model)


def _trainings():
    return {
        (reshard, accumulate): (
            _training(True, reshard, accumulate),
            _training(False, reshard, accumulate),
        )
        for reshard, accumulate in ((True, True), (False, True), (True, False))
    }


def _most_gathered():
    """The most numbers gathered at once: in a training step, and in a measurement."""
    held = {"now": 0, "most": 0}
    ways = FSDPParamGroup._to_unsharded, FSDPParamGroup._to_sharded

    def size(group):
        return sum(p._orig_size.numel() for p in group.fsdp_params)

    def gather(group):
        held["now"] += 0 if group.is_unsharded else size(group)
        held["most"] = max(held.values())
        ways[0](group)

    def free(group):
        held["now"] -= size(group) if group.is_unsharded else 0
        ways[1](group)

    model, x = build("transformer")
    parts = [*model.blocks, nn.ModuleList([model.mix, model.mixed_again]), model.patch, model.head]
    del parts[2]  # tied weights must be gathered by one module: the root does
    for part in parts:
        fully_shard(part)
    fully_shard(model)
    FSDPParamGroup._to_unsharded, FSDPParamGroup._to_sharded = gather, free
    try:
        model(x).sum().backward()
        training, held["most"] = held["most"], 0
        empirical_ntk(model, x)
    finally:
        FSDPParamGroup._to_unsharded, FSDPParamGroup._to_sharded = ways
    return training, held["most"], held["now"], sum(p.numel() for p in model.parameters())


# What is refused. ---------------------------------------------------------------------------------


class Centred(Perceptron):
    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(dim=0)


class Writes(Perceptron):
    def forward(self, x):
        with torch.no_grad():
            self.head.weight.mul_(0.5)
        return super().forward(x)


class ByMethod(Perceptron):
    def forward(self, x):
        for block in self.blocks:
            x = block.encode(x)
        return self.head(x)


class Encoder(nn.Linear):
    def encode(self, x):
        return torch.tanh(functional.linear(x, self.weight, self.bias))


def _refusals():
    found = {}
    model, x = build("perceptron")
    model = _shard(model)
    for engine in ("vmap", "loop"):
        found[engine] = _refusal(lambda engine=engine: empirical_ntk(model, x, engine=engine))
    found["batch statistics"] = _refusal(lambda: empirical_ntk(model, x, batchnorm="batch"))
    found["dtype"] = _refusal(lambda: empirical_ntk(model, x.float(), dtype=torch.float32))
    found["inputs"] = _refusal(lambda: empirical_ntk(model, x.float()))
    half = _shard(build("perceptron", dtype=torch.bfloat16)[0])
    found["half"] = _refusal(lambda: empirical_ntk(half, x.float()))
    mixed = _shard(build("perceptron")[0], mp_policy=MixedPrecisionPolicy(torch.float32))
    found["mixed precision"] = _refusal(lambda: empirical_ntk(mixed, x))
    for kind in (Centred, Writes):
        torch.manual_seed(0)
        model = _shard(kind().double())
        found[kind.__name__] = _refusal(lambda model=model: empirical_ntk(model, x))
    return found


def _unseen():
    """Parameters that a method other than forward gathers."""
    model, x = build("perceptron")
    model = ByMethod().double()
    model.blocks = nn.ModuleList([Encoder(4, 6), Encoder(6, 5)]).double()
    model = _shard(model)
    for block in model.blocks:
        register_fsdp_forward_method(block, "encode")
    return _refusal(lambda: empirical_ntk(model, x))


def _not_a_number():
    """In the shard of one process alone; both must stop."""
    model, x = build("perceptron")
    model = _shard(model)
    if torch.distributed.get_rank() == 1:
        with torch.no_grad():
            model.head.weight.to_local()[-1, -1] = float("nan")
    return _refusal(lambda: empirical_ntk(model, x))


def _after_a_failure():
    """A forward pass that fails between two steps, and the weights after the second step."""
    found = []
    too_short = torch.randn(5, 3, dtype=torch.float64)
    for failing in (True, False):
        model, x = build("perceptron")
        model = _shard(model).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            if failing and step == 1:
                wrong = _refusal(lambda model=model: empirical_ntk(model, too_short))
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(_whole(model))
    return wrong, *found


def _a_part_first():
    """A measurement of a part, before the whole has ever run."""
    model, x = build("perceptron")
    whole = copy.deepcopy(model)
    model = _shard(model).eval()
    kernel = empirical_ntk(model, x, forward=lambda m, x: m.blocks[1](torch.tanh(m.blocks[0](x))))
    with torch.no_grad():
        return kernel.matrix, float((model(x) - whole.eval()(x)).abs().max())


def _partly_sharded():
    """One block is sharded and the rest is held whole."""
    model, x = build("transformer")
    fully_shard(model.blocks[0])
    kernel = empirical_ntk(model, x, engine="structured")
    assert isinstance(model.blocks[0], FSDPModule)
    assert not isinstance(model, FSDPModule)
    return kernel.matrix


CASES = {
    "kernels": _kernels,
    "state": _state_after,
    "trainings": _trainings,
    "gathered": _most_gathered,
    "refusals": _refusals,
    "unseen": _unseen,
    "not a number": _not_a_number,
    "after a failure": _after_a_failure,
    "a part first": _a_part_first,
    "partly sharded": _partly_sharded,
}


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    warnings.filterwarnings("error", module="ntkwatch")
    join(rank, folder)
    found = {}
    for name, case in CASES.items():
        start = time.perf_counter()
        found[name] = case()
        sys.stdout.write(f"{name}: {time.perf_counter() - start:.1f} s\n")
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
