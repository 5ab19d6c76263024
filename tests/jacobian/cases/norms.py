"""Every normalisation layer in evaluation mode, its statistics and weights off one and zero."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional


def _between(norm, width=4):
    return nn.Sequential(nn.Linear(3, width), norm, nn.Tanh(), nn.Linear(width, 2))


def _in_image(norm):
    pool = Net(lambda _, x: x.mean((2, 3)))
    return nn.Sequential(nn.Conv2d(2, 4, 2), norm, nn.Tanh(), pool, nn.Linear(4, 2))


@case
def batch_norm_of_features():
    return _between(nn.BatchNorm1d(4)), torch.randn(5, 3)


@case
def batch_norm_over_time():
    layers = nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    return nn.Sequential(*layers), torch.randn(5, 2, 4)


@case
def batch_norm_of_images_with_a_large_epsilon():
    return _in_image(nn.BatchNorm2d(4, eps=0.5)), torch.randn(5, 2, 4, 4)


@case
def batch_norm_over_space():
    layers = nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    return nn.Sequential(*layers), torch.randn(5, 2, 2, 3, 3)


@case
def batch_norm_without_weights():
    return _between(nn.BatchNorm1d(4, affine=False)), torch.randn(5, 3)


@case
def batch_norm_before_all_weights():
    """The first operation meets the raw input."""
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.randn(5, 3)


@case
def synchronised_batch_norm():
    return _in_image(nn.SyncBatchNorm(4)), torch.randn(5, 2, 4, 4)


@case
def layer_norm_of_features():
    return _between(nn.LayerNorm(4)), torch.randn(5, 3)


@case
def layer_norm_of_tokens():
    parts = {"body": _between(nn.LayerNorm(4))}
    return Net(lambda net, x: net.body(x).mean(1), **parts), torch.randn(5, 6, 3)


@case
def layer_norm_over_two_axes():
    parts = {"up": nn.Linear(3, 4), "norm": nn.LayerNorm((2, 4)), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head(net.norm(net.up(x)).tanh().mean(1)), **parts)
    return net, torch.randn(5, 2, 3)


@case
def layer_norm_without_bias():
    return _between(nn.LayerNorm(4, bias=False)), torch.randn(5, 3)


@case
def layer_norm_without_weights():
    return _between(nn.LayerNorm(4, elementwise_affine=False)), torch.randn(5, 3)


@case
def layer_norm_by_hand():
    parts = {"up": nn.Linear(3, 4), "weight": torch.ones(4), "bias": torch.zeros(4)}

    def compute(net, x):
        h = net.up(x)
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
        h = (h - mean) * torch.rsqrt(variance + 1e-5) * net.weight + net.bias
        return net.head(h.tanh()).mean(1)

    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 3, 3)


@case
def layer_norm_of_channels_of_an_image():
    """ConvNeXt: the norm sees a permuted view."""
    norm = Net(
        lambda net, x: net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(4)
    )
    return _in_image(norm), torch.randn(5, 2, 3, 3)


@case
def group_norm():
    return _in_image(nn.GroupNorm(2, 4)), torch.randn(5, 2, 4, 4)


@case
def group_norm_of_one_group_over_time():
    layers = nn.Conv1d(2, 4, 2), nn.GroupNorm(1, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    return nn.Sequential(*layers), torch.randn(5, 2, 4)


@case
def instance_norm_with_weights():
    return _in_image(nn.InstanceNorm2d(4, affine=True)), torch.randn(5, 2, 4, 4)


@case
def instance_norm_with_running_statistics():
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return _in_image(norm), torch.randn(5, 2, 4, 4)


@case
def instance_norm_over_time():
    layers = nn.Conv1d(2, 4, 2), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 2)), torch.randn(5, 2, 5)


@case
def root_mean_square_norm():
    parts = {"body": _between(nn.RMSNorm(4))}
    return Net(lambda net, x: net.body(x).mean(1), **parts), torch.randn(5, 3, 3)


@case
def root_mean_square_norm_by_hand_with_one_plus_the_weight():
    parts = {"up": nn.Linear(3, 4), "weight": torch.zeros(4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        h = net.up(x)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * (1 + net.weight)
        return net.head(h.tanh()).mean(1)

    return Net(compute, **parts), torch.randn(5, 3, 3)


@case
def local_response_norm():
    return _in_image(nn.LocalResponseNorm(2, alpha=0.5)), torch.randn(5, 2, 3, 3)


@case
def one_layer_norm_used_at_three_places():
    parts = {"up": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "mix": nn.Linear(4, 4)}

    def compute(net, x):
        h = net.norm(net.up(x))
        h = h + net.mix(net.norm(h.tanh())).relu()
        return net.head(net.norm(h)).mean(1)

    return Net(compute, **parts, head=nn.Linear(4, 2)), torch.randn(5, 3, 3)


@case
def a_normalised_feature_and_a_cosine_head():
    parts = {"up": nn.Linear(3, 4), "prototypes": torch.randn(3, 4), "scale": torch.tensor(2.0)}

    def compute(net, x):
        features = functional.normalize(net.up(x), dim=-1)
        return net.scale.exp() * features @ functional.normalize(net.prototypes, dim=-1).mT

    return Net(compute, **parts), torch.randn(5, 3)


@case
def global_response_norm():
    """ConvNeXt V2: the weight multiplies a ratio of norms over positions."""
    parts = {"weight": torch.zeros(1, 4, 1, 1), "bias": torch.zeros(1, 4, 1, 1)}

    def compute(net, x):
        size = x.norm(dim=(2, 3), keepdim=True)
        ratio = size / (size.mean(dim=1, keepdim=True) + 1e-6)
        return net.weight * (x * ratio) + net.bias + x

    return _in_image(Net(compute, **parts)), torch.randn(5, 2, 4, 4)
