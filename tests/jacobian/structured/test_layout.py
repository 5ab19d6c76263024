"""Views of parameters: the entries that a chain of transposes, slices and reshapes shows.

The oracle does the same to a table of the entries' own numbers.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import get_gradient_edge

from ntkwatch.jacobian.structured.graph import Edge, Graph
from ntkwatch.jacobian.structured.layout import is_view, layout_of, overlap, view_of_parameter

SHAPE = (4, 6, 2)
SIZE = 48

CHAINS = {
    "nothing": lambda p: p,
    "transpose": lambda p: p.transpose(0, 2),
    "transpose counted from behind": lambda p: p.transpose(-1, -3),
    "matrix transpose": lambda p: p[0].t(),
    "permute": lambda p: p.permute(2, 0, 1),
    "permute counted from behind": lambda p: p.permute(-1, 0, -2),
    "slice": lambda p: p[1:3],
    "slice with a step": lambda p: p[:, 1:6:2],
    "slice counted from behind": lambda p: p[:, -4:-1],
    "slice counted from behind with a step": lambda p: p[..., -5:, :][:, ::3],
    "slice beyond the end": lambda p: p[2:99],
    "slice along the last axis": lambda p: p[..., 1:],
    "select": lambda p: p[:, 2],
    "select counted from behind": lambda p: p.select(-2, -3),
    "the last of split": lambda p: p.split(4, dim=1)[1],
    "split into sizes": lambda p: p.split([1, 2, 3], dim=-2)[2],
    "the middle of chunk": lambda p: p.chunk(3, dim=1)[1],
    "unbind": lambda p: p.unbind(1)[4],
    "unbind counted from behind": lambda p: p.unbind(-1)[1],
    "view": lambda p: p.view(8, 6),
    "flatten": lambda p: p.flatten(1),
    "unflatten": lambda p: p.unflatten(1, (2, 3)),
    "squeeze": lambda p: p[:, 2:3].squeeze(1),
    "squeeze of all": lambda p: p[1:2, 3:4].squeeze(),
    "squeeze of some": lambda p: p[1:2, 3:4].squeeze((0, 1)),
    "unsqueeze": lambda p: p.unsqueeze(-1),
    "clone": lambda p: p.clone(),
    "a projection cut into heads": lambda p: p.view(8, 6).t().chunk(2)[1].view(3, 2, 4)[:, -1],
    "a slice of a transpose of a slice": lambda p: p[1:, ::2].permute(2, 1, 0)[1, -2:, ::2],
    "many": lambda p: p.unbind(2)[1].split([2, 4], 1)[1].unflatten(1, (2, 2)).transpose(0, 2)[1:],
}


def _shown(operation, shape=SHAPE):
    """What the package says a chain shows, with the numbers of the entries it shows."""
    parameter = nn.Parameter(torch.randn(shape))
    result = operation(parameter)
    edge = get_gradient_edge(result)
    # Something must consume the result for it to stand in a graph.
    graph = Graph((result * 2.0).sum()[None], {"p": parameter})
    view = view_of_parameter(Edge(edge.node, edge.output_nr), graph.leaves["p"], shape)
    numbers = operation(torch.arange(parameter.numel()).view(shape))
    return view, numbers


def _numbers(view, size=SIZE):
    return torch.arange(size).as_strided(view.shape, view.stride(), view.storage_offset())


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_views_shows_the_entries_that_it_shows(name):
    view, numbers = _shown(CHAINS[name])
    assert view is not None
    assert torch.equal(_numbers(view), numbers)


NO_VIEWS = {
    "a product": lambda p: p * 2.0,
    "a view of a product": lambda p: (p * 2.0)[1:],
    "a reshape that copies": lambda p: p.transpose(0, 1).reshape(-1),
    "entries picked by an index": lambda p: p[torch.tensor([0, 2])],
    "a sum with itself turned": lambda p: p + p.flip(0),
    "an expansion": lambda p: p[:, :1].expand(4, 6, 2),
}


@pytest.mark.parametrize("name", NO_VIEWS)
def test_what_is_no_view_is_not_taken_for_one(name):
    parameter = nn.Parameter(torch.randn(SHAPE))
    result = NO_VIEWS[name](parameter)
    graph = Graph((result * 2.0).sum()[None], {"p": parameter})
    edge = get_gradient_edge(result)
    assert view_of_parameter(Edge(edge.node, edge.output_nr), graph.leaves["p"], SHAPE) is None


def test_a_view_of_another_parameter_is_none_of_this_one():
    one, two = nn.Parameter(torch.randn(SHAPE)), nn.Parameter(torch.randn(SHAPE))
    result = one[1:]
    graph = Graph((result.sum() + two.sum())[None], {"one": one, "two": two})
    edge = Edge(get_gradient_edge(result).node, 0)
    assert is_view(edge.node)
    assert view_of_parameter(edge, graph.leaves["one"], SHAPE) is not None
    assert view_of_parameter(edge, graph.leaves["two"], SHAPE) is None


KINDS = ["transpose", "permute", "slice", "select", "split", "unbind", "squeeze"]


@st.composite
def _chains(draw):
    """Up to five steps, each possible for the shape that those before have left."""
    steps, meta = [], torch.empty(SHAPE, device="meta")
    for _ in range(draw(st.integers(1, 5))):
        if not meta.ndim:
            break
        dim = draw(st.integers(-meta.ndim, meta.ndim - 1))
        size = meta.shape[dim]
        kind = draw(
            st.sampled_from(
                ["transpose", "permute", "slice", "select", "split", "unbind", "squeeze"]
            )
        )
        if kind == "transpose":
            arguments = (dim, draw(st.integers(-meta.ndim, meta.ndim - 1)))
        elif kind == "permute":
            arguments = (draw(st.permutations(range(meta.ndim))),)
        elif kind == "slice":
            start = draw(st.integers(-size, size - 1))
            arguments = (dim, start, draw(st.sampled_from([1, 2, 3])))
        elif kind in ("select", "unbind"):
            arguments = (dim, draw(st.integers(0 if kind == "unbind" else -size, size - 1)))
        elif kind == "split":
            cut = draw(st.integers(1, size))
            arguments = (dim, cut, draw(st.integers(0, -(-size // cut) - 1)))
        else:
            arguments = (dim,)
        steps.append((kind, arguments))
        meta = _step(meta, kind, arguments)
    return steps


def _step(tensor, kind, arguments):
    if kind == "slice":
        dim, start, step = arguments
        index = [slice(None)] * tensor.ndim
        index[dim] = slice(start, None, step)
        return tensor[tuple(index)]
    if kind in ("split", "unbind"):
        *rest, chosen = arguments
        return (tensor.split(rest[1], rest[0]) if kind == "split" else tensor.unbind(*rest))[chosen]
    return getattr(tensor, kind)(*arguments)


def _all_steps(steps):
    def operation(tensor):
        for kind, arguments in steps:
            tensor = _step(tensor, kind, arguments)
        return tensor

    return operation


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_chains())
def test_any_chain_of_views_shows_the_entries_that_it_shows(steps):
    view, numbers = _shown(_all_steps(steps))
    assert view is not None
    assert torch.equal(_numbers(view), numbers)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_chains(), st.data())
def test_a_layout_is_the_view_as_a_matrix(steps, data):
    view, numbers = _shown(_all_steps(steps))
    order = data.draw(st.permutations(range(view.ndim)))
    cut = data.draw(st.integers(0, view.ndim))
    act, cot = order[:cut], order[cut:]
    layout = layout_of(view, act, cot)
    axes = (*layout.act, *layout.cot)
    found = torch.arange(SIZE).as_strided(
        [size for size, _ in axes], [stride for _, stride in axes], layout.offset
    )
    assert torch.equal(found.flatten(), numbers.permute(order).flatten())
    assert layout.turned() == layout_of(view, cot, act)
    assert layout.turned().turned() == layout


def test_equal_matrices_have_equal_layouts_however_they_were_made():
    def made(operation, act, cot):
        view, _ = _shown(operation)
        return layout_of(view, act, cot)

    direct = made(lambda p: p, (1, 2), (0,))
    assert direct == made(lambda p: p.flatten(1), (1,), (0,))
    assert direct == made(lambda p: p.permute(1, 2, 0), (0, 1), (2,))
    assert direct == made(lambda p: p.unsqueeze(1), (2, 3, 1), (0,))
    assert direct != made(lambda p: p, (2, 1), (0,))
    assert direct.turned() == made(lambda p: p, (0,), (1, 2))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_chains(), _chains())
def test_two_views_overlap_if_an_entry_is_in_both(first, second):
    layouts, entries = [], []
    for steps in (first, second):
        view, numbers = _shown(_all_steps(steps))
        layouts.append(layout_of(view, range(view.ndim), ()))
        entries.append(set(numbers.flatten().tolist()))
    assert overlap(*layouts, SIZE) == bool(entries[0] & entries[1])


def test_slices_of_a_fused_projection_do_not_overlap():
    parts = [_shown(lambda p, i=i: p.view(12, 4).chunk(3)[i])[0] for i in range(3)]
    layouts = [layout_of(view, (1,), (0,)) for view in parts]
    for i, one in enumerate(layouts):
        for j, two in enumerate(layouts):
            assert overlap(one, two, SIZE) == (i == j)
