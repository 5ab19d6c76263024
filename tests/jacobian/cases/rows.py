"""Rows that are not samples: copied, interleaved, sorted, cut up, taken one by one.

Each model treats samples one by one and still lets no dimension say whose a row is.
"""

import torch
from jacobian.cases.case import Net, case
from torch import nn

DYNAMIC = "its shapes depend on the data"


def _parts():
    return {"up": nn.Linear(4, 3), "head": nn.Linear(3, 2)}


@case
def two_views_of_each_sample_one_after_the_other():
    """All first views, then all second ones: rows i and i + N belong together."""

    def compute(net, x):
        a, b = net.up(torch.cat([x, x.flip(1)])).tanh().chunk(2)
        return net.head(a + b**2)

    return Net(compute, **_parts()), torch.randn(5, 4)


@case
def candidates_beside_each_other():
    """Multiple choice: rows 3i to 3i + 2 belong to sample i."""

    def compute(net, x):
        h = net.up(x.flatten(0, 1)).tanh()
        return net.head(h).view(len(x), 3, 2).flatten(1).softmax(-1)

    return Net(compute, **_parts()), torch.randn(4, 3, 4)


@case
def copies_of_each_sample_with_learned_offsets():
    parts = _parts() | {"offset": torch.randn(3, 4)}

    def compute(net, x):
        rows = x.repeat_interleave(3, dim=0) + net.offset.repeat(len(x), 1)
        return net.head(net.up(rows).tanh().unflatten(0, (len(x), 3)).mean(1))

    return Net(compute, **parts), torch.randn(5, 4)


@case
def samples_sorted_and_put_back():
    def compute(net, x):
        order = x.norm(dim=1).argsort()
        return net.head(net.up(x[order]).tanh()[order.argsort()])

    return Net(compute, **_parts()), torch.randn(5, 4)


@case
def samples_in_reverse_order_inside():
    net = Net(lambda net, x: net.head(net.up(x.flip(0)).tanh()).flip(0), **_parts())
    return net, torch.randn(5, 4)


@case
def samples_taken_in_pieces():
    """One call of each layer for every two samples."""

    def compute(net, x):
        return torch.cat([net.head(net.up(part).tanh()) for part in x.split(2)])

    return Net(compute, **_parts()), torch.randn(5, 4)


@case
def samples_taken_one_by_one():
    """Each use of a weight belongs to one sample, and rows have no axis for it."""

    def compute(net, x):
        return torch.stack([net.head(net.up(row).tanh()) for row in x])

    return Net(compute, **_parts()), torch.randn(5, 4)


@case(vmap=DYNAMIC)
def samples_that_leave_early():
    parts = _parts() | {"more": nn.Linear(3, 3)}

    def compute(net, x):
        h = net.up(x).tanh()
        stay = x[:, 0] > 0
        h = h.index_put((stay.nonzero()[:, 0],), net.more(h[stay]).tanh())
        return net.head(h)

    return Net(compute, **parts), torch.randn(5, 4)


@case(vmap=DYNAMIC)
def real_tokens_of_all_samples_in_one_list():
    """Unpadded: one row of tokens, with attention inside each sample by a mask of blocks."""
    parts = _parts() | {"mix": nn.Linear(3, 9)}

    def compute(net, x, real):
        rows, owner = x[real], real.nonzero()[:, 0]
        q, k, v = net.mix(net.up(rows)).chunk(3, dim=-1)
        others = owner[:, None] != owner[None]
        h = (q @ k.mT).masked_fill(others, -torch.inf).softmax(-1) @ v
        return net.head(torch.segment_reduce(h.tanh(), "mean", lengths=real.sum(1), axis=0))

    real = torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    return Net(compute, **parts), (torch.randn(5, 4, 4), real)


@case
def two_towers_that_share_their_weights():
    def compute(net, x, y):
        a, b = net.head(net.up(x).tanh()), net.head(net.up(y).tanh())
        return torch.stack([(a * b).sum(1), (a - b).norm(dim=1)], dim=1)

    return Net(compute, **_parts()), (torch.randn(5, 4), torch.randn(5, 4))


@case
def a_parameter_that_is_itself_an_output():
    net = Net(lambda net, x: net.level.expand(len(x), -1) + 0 * x[:, :2], level=torch.randn(2))
    return net, torch.randn(5, 4)


@case
def a_parameter_that_is_the_second_half_of_the_outputs():
    """Policies: means depend on the state, standard deviations do not."""
    parts = _parts() | {"log_std": torch.randn(2)}

    def compute(net, x):
        return torch.cat([net.head(net.up(x).tanh()), net.log_std.exp().expand(len(x), 2)], dim=1)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_weight_used_as_it_is_and_normalised():
    def compute(net, x):
        unit = net.up.weight / net.up.weight.norm(dim=1, keepdim=True)
        return net.head((net.up(x) + x @ unit.T).tanh())

    return Net(compute, **_parts()), torch.randn(5, 4)


@case
def a_weight_stored_with_its_axes_swapped():
    parts = _parts()
    parts["up"].weight = nn.Parameter(torch.randn(4, 3).T)
    net = Net(lambda net, x: net.head(net.up(x).tanh()), **parts)
    return net, torch.randn(4, 5).T


@case
def one_sample_in_memory_seen_five_times():
    """An expanded input: all rows are one."""
    net = Net(lambda net, x: net.head(net.up(x).tanh()), **_parts())
    return net, torch.randn(1, 4).expand(5, 4)


@case
def a_parameter_without_entries():
    parts = _parts() | {"none": torch.randn(0, 4)}
    net = Net(lambda net, x: net.head(net.up(x).tanh()) + (x @ net.none.T).sum(), **parts)
    return net, torch.randn(5, 4)


@case
def inputs_nested_in_each_other():
    def forward(model, batch):
        return model(batch["state"][0], batch["state"][1])

    net = Net(lambda net, x, y: net.head(net.up(x) * net.up(y.to(x.dtype)).tanh()), **_parts())
    return net, {"state": (torch.randn(5, 4), torch.randint(0, 3, (5, 4)))}, {"forward": forward}
