"""Recurrent layers: one operation that hides many uses of a weight, and loops by hand."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

NO_BATCHING = "torch.func has no rule for fused recurrent operations"


def _last(layer, width):
    parts = {"layer": layer, "head": nn.Linear(width, 2)}
    return Net(lambda net, x: net.head(net.layer(x)[0].mean(1)), **parts)


@case(vmap=NO_BATCHING)
def an_lstm():
    return _last(nn.LSTM(3, 4, batch_first=True), 4), torch.randn(5, 3, 3)


@case(vmap=NO_BATCHING)
def a_two_layer_gru_in_both_directions():
    layer = nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    return _last(layer, 8), torch.randn(5, 3, 3)


@case(vmap=NO_BATCHING)
def a_recurrent_layer_with_relu_and_no_bias_time_first():
    parts = {"layer": nn.RNN(3, 4, nonlinearity="relu", bias=False), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head(net.layer(x.transpose(0, 1))[0]).mean(0), **parts)
    return net, torch.randn(5, 3, 3)


@case(vmap=NO_BATCHING)
def an_lstm_whose_state_is_projected():
    return _last(nn.LSTM(3, 4, proj_size=2, batch_first=True), 2), torch.randn(5, 3, 3)


@case(vmap=NO_BATCHING)
def an_lstm_read_at_its_final_state_of_both_directions():
    parts = {"layer": nn.LSTM(3, 4, bidirectional=True, batch_first=True), "head": nn.Linear(8, 2)}

    def compute(net, x):
        _, (hidden, cell) = net.layer(x)
        return net.head(torch.cat([hidden[0], cell[1]], dim=1))

    return Net(compute, **parts), torch.randn(5, 3, 3)


@case(vmap=NO_BATCHING)
def a_learned_first_state():
    parts = {"layer": nn.GRU(3, 4, batch_first=True), "start": torch.randn(1, 1, 4)}

    def compute(net, x):
        return net.head(net.layer(x, net.start.expand(1, len(x), 4).contiguous())[1][0])

    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 3, 3)


def _packed(layer, width, *, ordered):
    """Samples of different lengths in one list of rows, ordered by time and then by length."""

    def compute(net, x, lengths):
        packed = pack_padded_sequence(net.up(x), lengths, batch_first=True, enforce_sorted=ordered)
        out, lengths = pad_packed_sequence(net.layer(packed)[0], batch_first=True)
        return net.head(out.sum(1) / lengths[:, None].to(x))

    lengths = torch.tensor([3, 3, 3, 3, 3] if ordered else [2, 4, 1, 4, 3])
    parts = {"up": nn.Linear(3, 3), "layer": layer, "head": nn.Linear(width, 2)}
    return Net(compute, **parts), (torch.randn(5, 4, 3), lengths)


@case(vmap=NO_BATCHING)
def packed_sequences_of_one_length_shorter_than_the_padding():
    """Of different lengths they must come in order, and subsets come in any order."""
    return _packed(nn.LSTM(3, 4, batch_first=True), 4, ordered=True)


@case(vmap=NO_BATCHING)
def packed_sequences_in_any_order_through_two_directions():
    return _packed(nn.GRU(3, 4, bidirectional=True, batch_first=True), 8, ordered=False)


@case(vmap=NO_BATCHING)
def an_lstm_cell_in_a_loop():
    parts = {"cell": nn.LSTMCell(3, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        state = None
        for row in x.unbind(1):
            state = net.cell(row, state)
        return net.head(state[0])

    return Net(compute, **parts), torch.randn(5, 3, 3)


@case
def a_gru_cell_in_a_loop_with_an_output_at_every_step():
    parts = {"cell": nn.GRUCell(3, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        state, outputs = x.new_zeros(len(x), 4), []
        for row in x.unbind(1):
            state = net.cell(row, state)
            outputs.append(net.head(state))
        return torch.stack(outputs, dim=1)

    return Net(compute, **parts), torch.randn(5, 3, 3)


@case
def a_recurrent_cell_by_hand_without_a_bias_of_its_own():
    parts = {"a": nn.Linear(3, 4, bias=False), "b": torch.randn(4, 4) / 2, "head": nn.Linear(4, 2)}

    def compute(net, x):
        state = torch.zeros_like(net.a(x[:, 0]))
        for t in range(x.shape[1]):
            state = torch.tanh(net.a(x[:, t]) + state @ net.b)
        return net.head(state)

    return Net(compute, **parts), torch.randn(5, 4, 3)


@case
def a_scan_with_learned_decay():
    """A diagonal state space: the decay is a function of the parameter, met at every step."""
    parts = {"up": nn.Linear(3, 4), "log_rate": torch.randn(4), "skip": torch.randn(4)}

    def compute(net, x):
        h, decay = net.up(x), torch.exp(-torch.exp(net.log_rate))
        state, outputs = torch.zeros_like(h[:, 0]), []
        for t in range(x.shape[1]):
            state = decay * state + (1 - decay) * h[:, t]
            outputs.append(state + net.skip * h[:, t])
        return net.head(torch.stack(outputs, 1).tanh().mean(1))

    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 4, 3)


@case
def a_scan_whose_decay_depends_on_the_input():
    parts = {"gate": nn.Linear(3, 4), "up": nn.Linear(3, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        decay, h = net.gate(x).sigmoid(), net.up(x)
        total = decay.log().cumsum(1)
        return net.head(((h * (-total).exp()).cumsum(1) * total.exp()).tanh().mean(1))

    return Net(compute, **parts), torch.randn(5, 4, 3)


@case
def unrolled_iterations_of_a_learned_step():
    """A weight and a step size, eight uses each."""
    parts = {"weight": torch.randn(4, 4) / 3, "step": torch.tensor(0.3), "up": nn.Linear(3, 4)}

    def compute(net, x):
        z, source = torch.zeros(len(x), 4).to(x), net.up(x)
        for _ in range(8):
            z = z + net.step * (torch.tanh(z @ net.weight + source) - z)
        return net.head(z)

    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 3)
