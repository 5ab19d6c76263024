"""Tables looked up by index: padding, frequencies, bags, sparse gradients and tied heads."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional

VOCABULARY = 7
NO_BATCHING = "torch.func has no rule for bags of indices given with offsets"


def _tokens(n=5, length=4):
    return torch.randint(0, VOCABULARY, (n, length))


def _mean_of(table, width=4):
    parts = {"table": table, "head": nn.Linear(width, 3)}
    return Net(lambda net, tokens: net.head(net.table(tokens).tanh().mean(1)), **parts)


@case
def an_embedding_whose_tokens_repeat_within_and_between_samples():
    return _mean_of(nn.Embedding(VOCABULARY, 4)), torch.randint(0, 3, (5, 4))


@case
def one_token_per_sample():
    layers = nn.Embedding(VOCABULARY, 4), nn.Tanh(), nn.Linear(4, 2)
    return nn.Sequential(*layers), torch.tensor([1, 4, 1, 0, 6])


@case
def an_embedding_with_a_padding_token():
    tokens = _tokens()
    tokens[0] = 2
    tokens[1:3, 2:] = 2
    return _mean_of(nn.Embedding(VOCABULARY, 4, padding_idx=2)), tokens


@case
def an_embedding_whose_padding_token_is_counted_from_the_end():
    parts = {"table": torch.randn(VOCABULARY, 4), "head": nn.Linear(4, 3)}

    def compute(net, tokens):
        return net.head(functional.embedding(tokens, net.table, padding_idx=-1).tanh().mean(1))

    tokens = _tokens()
    tokens[:3, -1] = VOCABULARY - 1
    return Net(compute, **parts), tokens


@case
def gradients_divided_by_how_often_a_token_occurs():
    """No token occurs in two samples: else the gradient of one would depend on the other."""
    tokens = torch.tensor([[0, 0, 1], [2, 2, 2], [3, 4, 5], [6, 6, 6], [8, 7, 8]])
    return _mean_of(nn.Embedding(9, 4, scale_grad_by_freq=True)), tokens


@case(vmap="torch.func cannot batch the shortening of rows")
def an_embedding_whose_rows_would_be_shortened_if_they_were_longer():
    """Rows that are shortened in the forward pass are refused: measuring would alter weights."""
    return _mean_of(nn.Embedding(VOCABULARY, 4, max_norm=9.0)), _tokens()


@case(vmap="torch.func cannot batch sparse gradients")
def an_embedding_with_sparse_gradients():
    return _mean_of(nn.Embedding(VOCABULARY, 4, sparse=True)), _tokens()


@case
def rows_of_a_table_taken_by_indexing():
    parts = {"table": torch.randn(VOCABULARY, 4), "head": nn.Linear(4, 3)}
    return Net(lambda net, tokens: net.head(net.table[tokens].tanh().mean(1)), **parts), _tokens()


@case
def a_table_met_by_one_hot_rows():
    parts = {"table": torch.randn(VOCABULARY, 4), "head": nn.Linear(4, 3)}

    def compute(net, tokens):
        hot = (tokens[..., None] == torch.arange(VOCABULARY)).to(net.table.dtype)
        return net.head((hot @ net.table).tanh().mean(1))

    return Net(compute, **parts), _tokens()


@case
def entries_of_a_table_gathered_along_an_axis():
    parts = {"table": torch.randn(VOCABULARY, 4), "head": nn.Linear(4, 3)}

    def compute(net, tokens):
        rows = tokens[:, :, None].expand(-1, -1, 4)
        table = net.table.expand(len(tokens), -1, -1)
        return net.head(table.gather(1, rows).tanh().mean(1))

    return Net(compute, **parts), _tokens()


@case
def bags_of_equal_size():
    layers = nn.EmbeddingBag(VOCABULARY, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 2)
    return nn.Sequential(*layers), _tokens()


def _bags(bag, weighted=False):
    """Rows of different lengths: padded outside, cut into one list with offsets in the forward."""

    def compute(net, tokens, weights):
        kept = tokens >= 0
        lengths = kept.sum(1)
        offsets = lengths.cumsum(0) - lengths
        own = weights[kept] if weighted else None
        return net.head(net.bag(tokens[kept], offsets, per_sample_weights=own).tanh())

    tokens = _tokens(5, 4)
    tokens[1, 2:] = tokens[3, 1:] = -1
    return Net(compute, bag=bag, head=nn.Linear(4, 2)), (tokens, torch.rand(5, 4))


@case(vmap=NO_BATCHING)
def ragged_bags_added_up():
    return _bags(nn.EmbeddingBag(VOCABULARY, 4, mode="sum"))


@case(vmap=NO_BATCHING)
def ragged_bags_averaged():
    return _bags(nn.EmbeddingBag(VOCABULARY, 4, mode="mean", padding_idx=0))


@case(vmap=NO_BATCHING)
def ragged_bags_of_which_the_largest_is_taken():
    return _bags(nn.EmbeddingBag(VOCABULARY, 4, mode="max"))


@case(vmap=NO_BATCHING)
def ragged_bags_with_a_weight_for_each_token():
    return _bags(nn.EmbeddingBag(VOCABULARY, 4, mode="sum"), weighted=True)


@case(vmap=NO_BATCHING)
def ragged_bags_with_sparse_gradients_and_the_last_offset():
    bag = nn.EmbeddingBag(VOCABULARY, 4, mode="sum", sparse=True, include_last_offset=True)

    def compute(net, tokens):
        kept = tokens >= 0
        offsets = functional.pad(kept.sum(1).cumsum(0), (1, 0))
        return net.head(net.bag(tokens[kept], offsets).tanh())

    tokens = _tokens()
    tokens[2, 1:] = -1
    return Net(compute, bag=bag, head=nn.Linear(4, 2)), tokens


@case
def weights_of_the_tokens_in_a_bag_that_are_learned():
    parts = {"bag": nn.EmbeddingBag(VOCABULARY, 4, mode="sum"), "score": torch.randn(VOCABULARY)}

    def compute(net, tokens):
        weights = net.score[tokens].sigmoid()
        return net.head(net.bag(tokens, per_sample_weights=weights).tanh())

    return Net(compute, **parts, head=nn.Linear(4, 2)), _tokens()


@case
def a_head_tied_to_the_embedding():
    """The same tensor: rows are looked up in one place and multiplied by in the other."""
    parts = {"table": nn.Embedding(VOCABULARY, 4), "head": nn.Linear(4, VOCABULARY, bias=False)}
    parts["head"].weight = parts["table"].weight
    net = Net(lambda net, tokens: net.head(net.table(tokens).cumsum(1).tanh()), **parts)
    return net, _tokens(4, 3)


@case
def a_head_that_is_the_transposed_of_a_table_stored_the_other_way():
    """The table is (features, vocabulary): transposed where it is looked up, not in the head."""
    parts = {"table": torch.randn(4, VOCABULARY), "mix": nn.Linear(4, 4)}

    def compute(net, tokens):
        rows = functional.embedding(tokens, net.table.T)
        return (net.mix(rows).tanh().mean(1)) @ net.table

    return Net(compute, **parts), _tokens()


@case
def a_tied_head_with_a_scaled_table():
    parts = {"table": nn.Embedding(VOCABULARY, 4), "mix": nn.Linear(4, 4)}

    def compute(net, tokens):
        rows = net.table(tokens) * 2.0
        return net.mix(rows.mean(1)).tanh() @ (net.table.weight / 2).T

    return Net(compute, **parts), _tokens()


@case
def one_table_for_two_kinds_of_tokens():
    """An encoder and a decoder share the embedding."""
    parts = {"table": nn.Embedding(VOCABULARY, 4), "head": nn.Linear(4, 3)}

    def compute(net, source, target):
        return net.head((net.table(source).mean(1) * net.table(target).tanh().sum(1)).tanh())

    return Net(compute, **parts), (_tokens(5, 4), _tokens(5, 2))


@case
def a_parameter_that_is_a_table_and_a_bias():
    parts = {"table": torch.randn(4, 4), "head": nn.Linear(4, 3)}

    def compute(net, tokens):
        h = functional.embedding(tokens, net.table)
        return net.head((h + net.table).tanh().mean(1))

    return Net(compute, **parts), torch.randint(0, 4, (5, 4))
