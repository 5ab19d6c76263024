"""One of two processes that hold a model sharded by FSDP2; what it saw is saved for the tests.

``python -m jacobian.sharded_worker RANK FOLDER``; both run the same cases in the same order.
"""

import copy
import sys
import time
import warnings
from pathlib import Path

import torch
from jacobian.models import Counter
from jacobian.processes import join
from jacobian.sharded_models import MODELS, ByMethod, Centred, Encoder, Writes, build
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.nn import functional

from ntkwatch.errors import NtkwatchError
from ntkwatch.jacobian.cost import plan
from ntkwatch.jacobian.engine import empirical_ntk


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


def _refusals():
    found = {}
    model, x = build("perceptron")
    model = _shard(model)
    for engine in ("vmap", "loop"):
        found[engine] = _refusal(lambda engine=engine: empirical_ntk(model, x, engine=engine))
    found["batch statistics"] = _refusal(lambda: empirical_ntk(model, x, batchnorm="batch"))
    found["dtype"] = _refusal(lambda: empirical_ntk(model, x.float(), dtype=torch.float32))
    found["inputs"] = _refusal(lambda: empirical_ntk(model, x.float()))
    own = x + torch.distributed.get_rank()
    found["own inputs"] = _refusal(lambda: empirical_ntk(model, own))
    fewer = x[torch.distributed.get_rank() :]
    found["own number"] = _refusal(lambda: empirical_ntk(model, x, other=fewer))
    found["detached"] = _refusal(
        lambda: empirical_ntk(model, x, forward=lambda m, x: m(x).detach())
    )
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


def _after_a_failure(kind):
    """A measurement that fails between two steps, and the weights after the second step."""
    found = []
    for failing in (True, False):
        model, x = build("perceptron")
        policy = MixedPrecisionPolicy(torch.float32 if kind == "refused" else None)
        model = _shard(model, reshard=False, mp_policy=policy).eval()
        wrong = x[:, :3] if kind == "forward pass" else x
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            if failing and step == 1:
                error = _refusal(lambda model=model, wrong=wrong: empirical_ntk(model, wrong))
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(_whole(model))
    return error, *found


def _a_part_first():
    """A measurement of a part, before the whole has ever run."""
    model, x = build("perceptron")
    whole = copy.deepcopy(model)
    model = _shard(model).eval()
    kernel = empirical_ntk(model, x, forward=lambda m, x: m.blocks[1](torch.tanh(m.blocks[0](x))))
    with torch.no_grad():
        return kernel.matrix, float((model(x) - whole.eval()(x)).abs().max())


def _ways_to_shard():
    """One model, sharded in whole or in part, in groups, on meshes, with offloading."""
    for way in ("part", "groups", "mesh 1 x 2", "mesh 2 x 1", "offload"):
        model, x = build("transformer")
        if way == "part":
            fully_shard(model.blocks[0])
        elif way == "groups":
            fully_shard([model.patch, model.norm])
            fully_shard([model.mix, model.mixed_again, model.head])
            fully_shard(model)
        elif way == "offload":
            _shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
        else:
            shape = (1, 2) if way == "mesh 1 x 2" else (2, 1)
            _shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")))
        yield way, empirical_ntk(model, x, engine="structured").matrix


def _compiled():
    """Runs of the compiled graphs before, through and after a measurement, for two ways."""
    for way in ("wrapped", "in place"):
        model, x = build("transformer")
        model.eval()
        counter = Counter()
        for i, block in enumerate(model.blocks):
            if way == "wrapped":
                model.blocks[i] = torch.compile(block, backend=counter)
            else:
                block.compile(backend=counter)
        _shard(model)
        runs = []
        for measured in (False, False, True):
            model(x).sum().backward()
            runs.append(counter.runs)
            if measured:
                kernel = empirical_ntk(model, x, engine="structured")
                runs.append(counter.runs)
        model(x).sum().backward()
        yield way, (kernel.matrix, list(kernel.coverage), [*runs, counter.runs])


def _others():
    """Kernels and plans that need no process apart from those of the same model held whole."""
    found = {}
    for whole in (True, False):

        def made(kind, dtype=torch.float64, whole=whole):
            model, x = build(kind, dtype)
            return (model if whole else _shard(model)), x

        model, x = made("perceptron")
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.startswith("head"):
                    p.zero_()
        normed, y = made("normed")
        frozen, z = made("transformer")
        frozen.patch.requires_grad_(False)
        frozen.blocks[0].up.requires_grad_(False)
        found[whole] = {
            "zero head": empirical_ntk(model, x).matrix,
            "frozen": empirical_ntk(frozen, z).matrix,
            "zeros": empirical_ntk(frozen, z, forward=lambda m, x: m(x) * 0).matrix,
            "float32": empirical_ntk(*made("transformer", torch.float32)).matrix,
            "running": empirical_ntk(normed, y).matrix,
            "probe": empirical_ntk(normed, y, batchnorm="probe").matrix,
            "plan": str(plan(*made("transformer"))),
        }
    return found


CASES = {
    "kernels": _kernels,
    "state": _state_after,
    "trainings": _trainings,
    "gathered": _most_gathered,
    "refusals": _refusals,
    "unseen": _unseen,
    "not a number": _not_a_number,
    "after a failure": lambda: [_after_a_failure(kind) for kind in ("forward pass", "refused")],
    "a part first": _a_part_first,
    "ways": lambda: dict(_ways_to_shard()),
    "compiled": lambda: dict(_compiled()),
    "others": _others,
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
