"""One of two processes that train copies of a model (DDP); what it saw is saved for the tests.

``python -m jacobian.replicated_worker RANK FOLDER``. Only the process of rank 0 measures: if that
needed the other one, both would wait for each other, or later exchange the wrong numbers.
"""

import copy
import sys
from pathlib import Path

import torch
from jacobian.processes import join
from jacobian.snapshots import state_of
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ntkwatch.jacobian.cost import plan
from ntkwatch.jacobian.engine import empirical_ntk

__all__ = ["build"]

ENGINES = ("structured", "auto", "vmap", "loop")


def build():
    """A model with buffers, dropout and a name that looks like a wrapper's, and its samples."""
    torch.manual_seed(1)
    model = nn.Sequential()
    model.module = nn.Linear(4, 6)
    model.norm = nn.BatchNorm1d(6)
    model.drop = nn.Dropout(0.3)
    model.head = nn.Linear(6, 3)
    return model.double(), torch.randn(6, 4, dtype=torch.float64)


def _kernels(rank):
    if rank > 0:
        return {}
    model, x = build()
    wrapped = DistributedDataParallel(copy.deepcopy(model), process_group=_alone())
    found = {}
    for engine in ENGINES:
        for name, given in (("wrapper", wrapped), ("inside", wrapped.module)):
            kernel = empirical_ntk(given, x, engine=engine)
            found[name, engine] = kernel.matrix, kernel.coverage, list(kernel.layers)
    return found, [step.parameter for step in plan(wrapped, x).steps]


def _alone():
    return torch.distributed.new_group([0], use_local_synchronization=True)


def _training(rank, watched, **options):
    """Weights and buffers after four steps, how often gradients were exchanged, what was left."""
    model, x = build()
    wrapped = DistributedDataParallel(model, **options)
    exchanged = []

    def exchange(state, bucket):
        exchanged.append(bucket.index())
        future = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / 2)

    wrapped.register_comm_hook(None, exchange)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(7 + rank)
    states = []
    for step in range(4):
        if watched and rank == 0:
            before = state_of(wrapped)
            empirical_ntk(wrapped, x, engine=ENGINES[step])
            states.append((before, state_of(wrapped)))
        y = (torch.arange(6) + step) % 3
        functional.cross_entropy(wrapped(x + rank), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    return model.state_dict(), len(exchanged), states


def _trainings(rank):
    kinds = ({}, {"find_unused_parameters": True}, {"static_graph": True})
    return [(_training(rank, True, **kind), _training(rank, False, **kind)) for kind in kinds]


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    join(rank, folder)
    found = {"trainings": _trainings(rank), "kernels": _kernels(rank)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
