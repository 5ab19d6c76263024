"""Graphs of different sizes and routed experts: rows that lie in no order of samples.

A sample is one row of padded inputs; the forward cuts out what is real, mixes the rows of all
samples up, and brings the results home by index.
"""

import torch
from jacobian.cases.case import Net, case
from torch import nn

DYNAMIC = "its shapes depend on the data"


def _graphs():
    """Five graphs of 4, 1, 3, 2 and 4 nodes: features, which nodes exist, who speaks to whom."""
    sizes = torch.tensor([4, 1, 3, 2, 4])
    exists = torch.arange(4) < sizes[:, None]
    edges = (torch.rand(5, 4, 4) < 0.6) & exists[:, None] & exists[:, :, None]
    return torch.randn(5, 4, 3), exists, edges


def _nodes(x, exists, edges):
    """Nodes of all graphs interleaved: first all first nodes, then all second ones, and so on."""
    graph, place = exists.nonzero(as_tuple=True)
    order = (place * len(x) + graph).argsort()
    graph, place = graph[order], place[order]
    number = torch.full(exists.shape, -1).index_put((graph, place), torch.arange(len(graph)))
    where, receiver, sender = edges.nonzero(as_tuple=True)
    return x[graph, place], graph, number[where, sender], number[where, receiver]


@case(vmap=DYNAMIC)
def a_graph_network_that_adds_messages_by_index():
    parts = {"up": nn.Linear(3, 4), "message": nn.Linear(8, 4), "head": nn.Linear(4, 2)}

    def compute(net, x, exists, edges):
        rows, graph, sender, receiver = _nodes(x, exists, edges)
        h = net.up(rows).tanh()
        sent = net.message(torch.cat([h[sender], h[receiver]], dim=1)).relu()
        h = h + torch.zeros_like(h).index_add(0, receiver, sent)
        return net.head(h.new_zeros(len(x), 4).index_add(0, graph, h.tanh()))

    return Net(compute, **parts), _graphs()


@case(vmap=DYNAMIC)
def a_graph_convolution_normalised_by_degree_with_a_mean_over_nodes():
    parts = {"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(4, 4), "bias": torch.randn(4)}

    def compute(net, x, exists, edges):
        rows, graph, sender, receiver = _nodes(x, exists, edges)
        degree = torch.ones(len(rows)).to(x).index_add(0, receiver, torch.ones(len(sender)).to(x))
        norm = (degree[sender] * degree[receiver]).rsqrt()[:, None]
        for layer in (net.a, net.b):
            h = layer(rows)
            rows = (
                (h / degree[:, None]).index_add(0, receiver, h[sender] * norm).add(net.bias).tanh()
            )
        total = x.new_zeros(len(x), 4).index_add(0, graph, rows)
        return net.head(total / exists.sum(1, keepdim=True))

    return Net(compute, **parts, head=nn.Linear(4, 2)), _graphs()


@case(vmap=DYNAMIC)
def graph_attention_with_a_softmax_over_neighbours():
    parts = {"up": nn.Linear(3, 4), "source": torch.randn(4, 1), "target": torch.randn(4, 1)}

    def compute(net, x, exists, edges):
        rows, graph, sender, receiver = _nodes(x, exists, edges)
        h = net.up(rows)
        score = ((h @ net.source)[sender] + (h @ net.target)[receiver]).tanh().exp()
        total = h.new_ones(len(h), 1).index_add(0, receiver, score)
        h = h + torch.zeros_like(h).index_add(0, receiver, score / total[receiver] * h[sender])
        return net.head(
            h.new_zeros(len(x), 4).scatter_add(0, graph[:, None].expand(-1, 4), h.tanh())
        )

    return Net(compute, **parts, head=nn.Linear(4, 2)), _graphs()


@case(vmap=DYNAMIC)
def a_graph_pooled_by_its_largest_entries():
    parts = {"up": nn.Linear(3, 4), "head": nn.Linear(4, 2)}

    def compute(net, x, exists, edges):
        rows, graph, _, _ = _nodes(x, exists, edges)
        index = graph[:, None].expand(-1, 4)
        low = x.new_full((len(x), 4), -9.0)
        return net.head(low.scatter_reduce(0, index, net.up(rows), "amax"))

    return Net(compute, **parts), _graphs()


@case(vmap=DYNAMIC)
def features_of_edges_and_a_norm_over_ragged_nodes():
    parts = {"kind": nn.Embedding(3, 4), "up": nn.Linear(3, 4), "norm": nn.LayerNorm(4)}

    def compute(net, x, exists, edges):
        rows, graph, sender, receiver = _nodes(x, exists, edges)
        h = net.norm(net.up(rows))
        kind = (rows[sender, 0] > 0).long() + (rows[receiver, 0] > 0).long()
        sent = net.kind(kind) * h.index_select(0, sender)
        h = torch.zeros_like(h).index_add(0, receiver, sent.tanh()) + h
        return net.head(h.new_zeros(len(x), 4).index_add(0, graph, h))

    return Net(compute, **parts, head=nn.Linear(4, 2)), _graphs()


@case
def a_graph_as_a_dense_matrix_of_neighbours():
    parts = {"up": nn.Linear(3, 4), "mix": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x, exists, edges):
        near = edges.to(x.dtype)
        h = net.up(x).tanh()
        h = (h + near @ net.mix(h)).tanh() * exists[..., None]
        return net.head(h.sum(1))

    return Net(compute, **parts), _graphs()


def _experts(count=3):
    return [nn.Linear(4, 4) for _ in range(count)]


@case(vmap=DYNAMIC)
def the_best_expert_for_each_sample():
    parts = {"gate": nn.Linear(4, 3), "experts": _experts(), "head": nn.Linear(4, 2)}

    def compute(net, x):
        share, chosen = net.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(net.experts):
            rows = (chosen == i).nonzero()[:, 0]
            sent = expert(x.index_select(0, rows)).tanh() * share[rows, None]
            out = out.index_add(0, rows, sent)
        return net.head(out)

    return Net(compute, **parts), torch.randn(5, 4)


@case(vmap=DYNAMIC)
def the_two_best_experts_for_each_token():
    parts = {"gate": nn.Linear(4, 4, bias=False), "experts": _experts(4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        tokens = x.flatten(0, 1)
        weight, chosen = net.gate(tokens).softmax(-1).topk(2, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(net.experts):
            row, slot = (chosen == i).nonzero(as_tuple=True)
            out = out.index_add(0, row, expert(tokens[row]).relu() * weight[row, slot, None])
        return net.head((tokens + out).view_as(x).mean(1))

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case(vmap=DYNAMIC)
def an_expert_that_gets_no_token_and_writes_by_boolean_mask():
    parts = {"experts": _experts(3), "head": nn.Linear(4, 2)}

    def compute(net, x):
        out = torch.zeros_like(x)
        for i, expert in enumerate(net.experts):
            mine = (x[..., 0] > 0) == bool(i) if i < 2 else x[..., 0] > 99
            out[mine] = expert(x[mine])
        return net.head(out.tanh().mean(1))

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case(vmap=DYNAMIC)
def experts_over_tokens_sorted_by_expert():
    """Tokens are sorted, cut into runs of ragged length, and put back: grouped matrix products."""
    parts = {"weight": torch.randn(3, 4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        tokens = x.flatten(0, 1)
        chosen = tokens[:, :3].argmax(-1)
        order = chosen.argsort(stable=True)
        runs = tokens[order].split(torch.bincount(chosen, minlength=3).tolist())
        done = torch.cat([run @ net.weight[i] for i, run in enumerate(runs)])
        back = torch.empty_like(done).index_copy(0, order, done)
        return net.head(back.view_as(x).tanh().mean(1))

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def experts_that_all_see_every_token_and_are_weighted():
    parts = {"gate": nn.Linear(4, 3), "up": torch.randn(3, 4, 5), "down": torch.randn(3, 5, 4)}

    def compute(net, x):
        share = net.gate(x).softmax(-1)
        h = torch.einsum("ntd,edf->ntef", x, net.up).relu()
        return net.head(torch.einsum("ntef,efd,nte->ntd", h, net.down, share).mean(1))

    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 3, 4)
