"""Attention in the layouts and with the masks and biases that real code uses."""

import math
import warnings

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional


def _attend(**options):
    """Self-attention, time first unless the options say otherwise."""
    return nn.MultiheadAttention(4, 2, **options)


def _read(net, h):
    return net.head(h.tanh().mean(1))


@case
def multi_head_attention_batch_first():
    def compute(net, x):
        return _read(net, net.attend(x, x, x, need_weights=False)[0])

    parts = {"attend": _attend(batch_first=True), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def multi_head_attention_time_first():
    def compute(net, x):
        h = net.up(x).transpose(0, 1)
        return _read(net, net.attend(h, h, h)[0].transpose(0, 1))

    parts = {"up": nn.Linear(4, 4), "attend": _attend(), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def cross_attention_with_keys_and_values_of_other_widths():
    def compute(net, x, keys, values):
        return _read(net, net.attend(x, keys, values)[0])

    parts = {"attend": _attend(kdim=3, vdim=5, batch_first=True), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.randn(5, 6, 3), torch.randn(5, 6, 5))


@case
def cross_attention_that_uses_slices_of_the_fused_projection():
    def compute(net, x, memory):
        return _read(net, net.attend(x, memory, memory, need_weights=False)[0])

    parts = {"attend": _attend(batch_first=True, bias=False), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), (torch.randn(5, 2, 4), torch.randn(5, 4, 4))


@case
def attention_with_learned_bias_tokens_and_a_zero_token():
    def compute(net, x):
        return _read(net, net.attend(x, x, x)[0])

    options = {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}
    return Net(compute, attend=_attend(**options), head=nn.Linear(4, 2)), torch.randn(5, 3, 4)


@case
def attention_with_a_padding_mask_of_each_sample_and_a_causal_mask():
    def compute(net, x, padding):
        future = torch.ones(4, 4, dtype=torch.bool).triu(1)
        h = net.attend(x, x, x, key_padding_mask=padding, attn_mask=future, need_weights=False)[0]
        return _read(net, h.masked_fill(padding[..., None], 0.0))

    padding = torch.arange(4) >= torch.tensor([4, 2, 3, 1, 4])[:, None]
    parts = {"attend": _attend(batch_first=True), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), (torch.randn(5, 4, 4), padding)


def _split(qkv, heads=2):
    return (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))


@case
def a_fused_projection_split_by_chunk():
    def compute(net, x):
        q, k, v = net.qkv(x).chunk(3, dim=-1)
        return _read(net, (q @ k.mT / 2).softmax(-1) @ v)

    return Net(compute, qkv=nn.Linear(4, 12), head=nn.Linear(4, 2)), torch.randn(5, 3, 4)


@case
def fused_attention_with_a_mask_of_each_sample():
    def compute(net, x, mask):
        h = functional.scaled_dot_product_attention(
            *_split(net.qkv(x)), attn_mask=mask[:, None, None]
        )
        return _read(net, h.transpose(1, 2).flatten(2))

    mask = torch.arange(4) < torch.tensor([4, 2, 3, 1, 4])[:, None]
    return Net(compute, qkv=nn.Linear(4, 12), head=nn.Linear(4, 2)), (torch.randn(5, 4, 4), mask)


@case
def fused_causal_attention_with_few_heads_for_the_keys():
    def compute(net, x):
        q, k, v = (part(x).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (net.q, net.k, net.v))
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return _read(net, h.transpose(1, 2).flatten(2))

    parts = {
        "q": nn.Linear(4, 4),
        "k": nn.Linear(4, 2),
        "v": nn.Linear(4, 2),
        "head": nn.Linear(4, 2),
    }
    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def a_bias_of_positions_given_to_fused_attention_as_its_mask():
    def compute(net, x):
        h = functional.scaled_dot_product_attention(*_split(net.qkv(x)), attn_mask=net.bias)
        return _read(net, h.transpose(1, 2).flatten(2))

    parts = {"qkv": nn.Linear(4, 12), "bias": torch.randn(2, 3, 3), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def windows_with_a_table_of_relative_positions():
    """Swin: windows are an axis of the batch, and the table is read by a matrix of offsets."""
    row, column = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
    place = torch.stack([row.flatten(), column.flatten()])
    offset = place[:, :, None] - place[:, None] + 1
    index = offset[0] * 3 + offset[1]

    def compute(net, x):
        n, height, width, d = x.shape
        windows = x.reshape(n, height // 2, 2, width // 2, 2, d).transpose(2, 3).reshape(-1, 4, d)
        q, k, v = _split(net.qkv(windows))
        bias = net.table[index.flatten()].view(4, 4, 2).permute(2, 0, 1)
        h = (q @ k.mT / math.sqrt(2) + bias).softmax(-1) @ v
        h = net.out(h.transpose(1, 2).flatten(2)).view(n, -1, 4, d)
        return net.head((windows.view(n, -1, 4, d) + h).tanh().mean((1, 2)))

    parts = {"qkv": nn.Linear(4, 12), "table": torch.randn(9, 2), "out": nn.Linear(4, 4)}
    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 4, 4, 4)


@case
def shifted_windows_over_time_with_time_first():
    def compute(net, x):
        h = net.up(x.roll(1, dims=1)).transpose(0, 1)
        windows = h.unflatten(0, (2, 2)).permute(1, 0, 2, 3).flatten(1, 2)
        mixed = net.attend(windows, windows, windows, need_weights=False)[0]
        h = mixed.unflatten(1, (2, len(x))).permute(2, 1, 0, 3).flatten(1, 2)
        return _read(net, h.roll(-1, dims=1))

    parts = {"up": nn.Linear(4, 4), "attend": _attend(), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), torch.randn(5, 4, 4)


@case
def rotary_positions_with_learned_frequencies():
    def compute(net, x):
        q, k, v = net.qkv(x).chunk(3, dim=-1)
        angle = torch.arange(3.0)[:, None].to(x) * net.frequency.exp()

        def turn(h):
            a, b = h.chunk(2, dim=-1)
            return torch.cat(
                [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1
            )

        return _read(net, (turn(q) @ turn(k).mT).softmax(-1) @ v)

    parts = {"qkv": nn.Linear(4, 12), "frequency": torch.randn(2), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def learned_queries_that_every_sample_shares():
    """A perceiver: the queries come from a parameter alone, and a projection of it."""

    def compute(net, x):
        q = net.q(net.latents).expand(len(x), -1, -1)
        return _read(net, (q @ net.k(x).mT).softmax(-1) @ x)

    parts = {"latents": torch.randn(2, 4), "q": nn.Linear(4, 4), "k": nn.Linear(4, 4)}
    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 3, 4)


@case
def linear_attention_by_einsum():
    def compute(net, x):
        q, k, v = net.qkv(x).unflatten(-1, (3, 2, 2)).unbind(2)
        state = torch.einsum("nthd,nthe->nhde", k.sigmoid(), v)
        return _read(net, torch.einsum("nthd,nhde->nthe", q.sigmoid(), state).flatten(2))

    return Net(compute, qkv=nn.Linear(4, 12), head=nn.Linear(4, 2)), torch.randn(5, 3, 4)


@case
def attention_with_a_temperature_for_each_head_and_normalised_queries():
    def compute(net, x):
        q, k, v = _split(net.qkv(x))
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        return _read(net, ((q @ k.mT * net.scale.exp()).softmax(-1) @ v).transpose(1, 2).flatten(2))

    parts = {"qkv": nn.Linear(4, 12), "scale": torch.randn(2, 1, 1), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def a_transformer_encoder_batch_first():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    net = Net(lambda net, x: _read(net, net.encode(x)), encode=encoder, head=nn.Linear(4, 2))
    return net, torch.randn(5, 3, 4)


@case
def a_transformer_encoder_time_first_with_norms_first():
    layer = nn.TransformerEncoderLayer(4, 2, 6, norm_first=True, activation="gelu", bias=False)

    def compute(net, x):
        return _read(net, net.layer(x.transpose(0, 1)).transpose(0, 1))

    return Net(compute, layer=layer, head=nn.Linear(4, 2)), torch.randn(5, 3, 4)


@case
def a_transformer_decoder_with_a_causal_mask():
    layer = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)

    def compute(net, x, memory):
        future = nn.Transformer.generate_square_subsequent_mask(3)
        h = net.decode(x, memory, tgt_mask=future.to(x), tgt_is_causal=True)
        return _read(net, h)

    parts = {"decode": nn.TransformerDecoder(layer, 2), "head": nn.Linear(4, 2)}
    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.randn(5, 2, 4))


@case
def a_whole_transformer_time_first():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
        body = nn.Transformer(4, 2, 1, 1, 6)

    def compute(net, x, y):
        return _read(net, net.body(x.transpose(0, 1), y.transpose(0, 1)).transpose(0, 1))

    parts = {"body": body, "head": nn.Linear(4, 2)}
    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.randn(5, 2, 4))
