"""One of two processes that train and watch a model sharded by FSDP2; what it saw is saved.

``python -m watch.sharded_worker RANK FOLDER``; both run the same cases in the same order.
"""

import sys
import time
import warnings
import weakref
from pathlib import Path

import torch
from jacobian.processes import join
from jacobian.sharded_models import build
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.nn import functional

from ntkwatch import KernelTracker, ProbeBatch
from ntkwatch.errors import NtkwatchError
from ntkwatch.jacobian import moving
from ntkwatch.watch.readings import linear_error

NUMBERS = (
    "relative_kernel_change",
    "kernel_angle",
    "layer_angle",
    "linearization_error",
    "linearization_error_centred",
    "linearization_method",
    "output_change",
    "displacement",
    "relative_displacement",
    "layer_displacement",
    "noise_floor",
    "left_out",
)


class Texts(nn.Module):
    """Token embeddings with a padding row that is tied to the head, and a running average."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.LayerNorm(5)])
        self.words = nn.Embedding(7, 5, padding_idx=0)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, tokens):
        x = self.words(tokens)
        for block in self.blocks:
            x = torch.tanh(block(x))
        x = x.mean(dim=1)
        if self.training:
            self.seen += x.detach().mean(dim=0)
        return self.head(x + 0.1 * self.seen)


def made(kind, dtype=torch.float64):
    if kind != "texts":
        return build(kind, dtype)
    torch.manual_seed(3)
    return Texts().to(dtype), torch.randint(0, 7, (6, 4))


def _shard(model, reshard=True, **options):
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=reshard, **options)
    return fully_shard(model, reshard_after_forward=reshard, **options)


def _whole(model):
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = {name: p.detach().full_tensor().clone() for name, p in model.named_parameters()}
    return found | {name: b.clone() for name, b in model.named_buffers()}


def _local(optimizer):
    states = [state for _, state in sorted(optimizer.state_dict()["state"].items())]
    return [
        value.to_local() if hasattr(value, "to_local") else value
        for state in states
        for _, value in sorted(state.items())
    ]


def _trained(kind, *, watch, reshard=True, dtype=torch.float64, fresh=False, **options):
    """Three steps of Adam on batches of each process's own; weights and looks at every step."""
    rank = torch.distributed.get_rank()
    model, x = made(kind, dtype)
    model = _shard(model, reshard, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    y = torch.arange(len(x)) % 3
    draw = (lambda step: ProbeBatch(x.roll(step, 0), y)) if fresh else None
    tracker = KernelTracker(ProbeBatch(x, y), outputs="full", fresh_probe=draw, warmup_steps=2)
    torch.manual_seed(7 + rank)
    looks, weights = [], []

    def look(step):
        if watch:
            seen = tracker.observe(model, step)
            numbers = {key: getattr(seen, key) for key in NUMBERS}
            warm = None if seen.since_warmup is None else seen.since_warmup.linearization_error
            looks.append((numbers, warm, tracker.kernel.matrix, tracker.kernel.layers))

    look(0)
    weights.append(_whole(model))
    for step in range(1, 4):
        rows = torch.randperm(len(x))[:3]
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        look(step)
        weights.append(_whole(model))
    return looks, weights, _local(optimizer), torch.get_rng_state()


def _runs():
    found = {}
    for kind in ("perceptron", "transformer", "texts"):
        for reshard in (True, False) if kind == "transformer" else (True,):
            found[kind, reshard] = [
                _trained(kind, watch=watch, reshard=reshard) for watch in (True, False)
            ]
    return found


def _other_ways():
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    return {
        "mesh 2 x 1": _trained("perceptron", watch=True, mesh=mesh)[:2],
        "fresh probes": _trained("perceptron", watch=True, fresh=True)[:2],
        "float32": _trained("perceptron", watch=True, dtype=torch.float32)[:2],
    }


def _refusal(call):
    try:
        call()
    except NtkwatchError as error:
        return type(error).__name__, str(error)
    return None


def _refusals():
    model, x = build("perceptron")
    model, found = _shard(model), {}
    own = x + torch.distributed.get_rank()
    found["own probe"] = _refusal(lambda: KernelTracker(ProbeBatch(own)).observe(model, 0))
    for engine in ("sketch", "vmap"):
        tracker = KernelTracker(ProbeBatch(x), engine=engine)
        found[engine] = _refusal(lambda tracker=tracker: tracker.observe(model, 0))
    normed, y = build("normed")
    normed, tracker = _shard(normed), KernelTracker(ProbeBatch(y))
    tracker.observe(normed, 0)
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.1)
    rank = torch.distributed.get_rank()
    normed(y.roll(rank, 1)).square().sum().backward()  # running averages of each process's own
    optimizer.step()
    found["normed"] = tracker.observe(normed, 1).left_out
    return found


def _most_gathered():
    """The most numbers gathered at once, weights and directions: in training, and in a look."""
    held = {"now": 0, "most": 0}
    ways = FSDPParamGroup._to_unsharded, FSDPParamGroup._to_sharded, moving.whole

    def note(size):
        held["now"] += size
        held["most"] = max(held.values())

    def size(group):
        return sum(p._orig_size.numel() for p in group.fsdp_params)

    def gather(group):
        note(0 if group.is_unsharded else size(group))
        ways[0](group)

    def free(group):
        note(-size(group) if group.is_unsharded else 0)
        ways[1](group)

    def whole(direction):
        found = ways[2](direction)
        note(found.numel())
        weakref.finalize(found, note, -found.numel())
        return found

    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(9)]).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    for block in model:
        fully_shard(block)
    fully_shard(model)
    tracker = KernelTracker(ProbeBatch(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker.observe(model, 0)
    FSDPParamGroup._to_unsharded, FSDPParamGroup._to_sharded = gather, free
    moving.whole = whole
    try:
        model(x).sum().backward()
        optimizer.step()
        training, held["most"] = held["most"], 0
        seen = tracker.observe(model, 1)
    finally:
        FSDPParamGroup._to_unsharded, FSDPParamGroup._to_sharded, moving.whole = ways
    assert seen.linearization_error is not None
    return training, held["most"], held["now"], sum(p.numel() for p in model.parameters())


def _after_a_failure():
    """A look that fails while the reference's weights are in place, and training goes on."""
    ends, said = [], ""
    for failing in (True, False):
        model, x = build("perceptron")
        model = _shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = KernelTracker(ProbeBatch(x))
        if failing:
            tracker.observe(model, 0)
        for step in range(2):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if failing and step == 0:
                ways, linear_error.sharded_product = linear_error.sharded_product, _fails
                try:
                    tracker.observe(model, 1)
                except OSError as error:
                    said = str(error)
                finally:
                    linear_error.sharded_product = ways
        ends.append(_whole(model))
    return said, *ends


def _fails(function, inputs, *_):
    function({}, inputs)
    raise OSError("in the middle")


CASES = {
    "runs": _runs,
    "ways": _other_ways,
    "refusals": _refusals,
    "gathered": _most_gathered,
    "after a failure": _after_a_failure,
}


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    warnings.filterwarnings("error", module="ntkwatch")
    torch.set_num_threads(1)
    join(rank, folder)
    found = {}
    for name, case in CASES.items():
        start = time.perf_counter()
        found[name] = case()
        sys.stdout.write(f"{name}: {time.perf_counter() - start:.1f} s\n")
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
