"""Convolutions in every geometry, and what moves pixels about between them."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional


def _pooled(*layers, width, outputs=2):
    """The layers, a nonlinearity, a mean over positions and a head."""
    pool = Net(lambda _, x: x.flatten(2).mean(2))
    return nn.Sequential(*layers, nn.Tanh(), pool, nn.Linear(width, outputs))


@case
def a_convolution_over_time():
    return _pooled(nn.Conv1d(3, 4, 3), width=4), torch.randn(5, 3, 6)


@case
def a_convolution_over_the_plane_with_and_without_bias():
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False)
    return _pooled(*layers, width=4), torch.randn(5, 2, 5, 5)


@case
def a_convolution_over_space():
    return _pooled(nn.Conv3d(2, 3, 2), width=3), torch.randn(5, 2, 3, 4, 3)


@case
def a_convolution_with_a_kernel_that_is_not_square_and_strides_that_differ():
    layer = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2))
    return _pooled(layer, width=3), torch.randn(5, 2, 7, 6)


@case
def a_grouped_convolution():
    return _pooled(nn.Conv2d(4, 6, 3, groups=2), width=6), torch.randn(5, 4, 5, 5)


@case
def a_depthwise_convolution_then_a_pointwise_one():
    layers = nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.SiLU(), nn.Conv2d(6, 4, 1)
    return _pooled(*layers, width=4), torch.randn(5, 3, 5, 5)


@case
def a_depthwise_causal_convolution_over_time():
    """Padded on both sides and cut, as state space models do."""
    parts = {"conv": nn.Conv1d(3, 3, 4, groups=3, padding=3), "head": nn.Linear(3, 2)}
    net = Net(lambda net, x: net.head(net.conv(x)[..., :6].tanh().mean(2)), **parts)
    return net, torch.randn(5, 3, 6)


@case
def a_dilated_convolution():
    return _pooled(nn.Conv2d(2, 3, 3, dilation=2), width=3), torch.randn(5, 2, 7, 7)


@case
def a_strided_convolution_that_leaves_a_margin():
    return _pooled(nn.Conv2d(2, 3, 3, stride=2), width=3), torch.randn(5, 2, 6, 6)


@case
def patches_by_a_convolution_whose_stride_is_its_size():
    parts = {"patch": nn.Conv2d(3, 4, 2, stride=2), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head(net.patch(x).flatten(2).mT.tanh()).sum(1), **parts)
    return net, torch.randn(5, 3, 4, 4)


@case
def a_convolution_over_one_position():
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten()), torch.randn(5, 2, 1, 1)


@case
def a_convolution_padded_in_a_circle():
    return _pooled(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), width=3), (
        torch.randn(5, 2, 4, 4)
    )


@case
def a_convolution_padded_by_reflection():
    return _pooled(nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), width=3), (
        torch.randn(5, 2, 5)
    )


@case
def a_convolution_padded_to_the_same_size_unevenly():
    return _pooled(nn.Conv1d(2, 3, 4, padding="same"), width=3), torch.randn(5, 2, 6)


@case
def a_convolution_with_valid_padding_by_name():
    return _pooled(nn.Conv2d(2, 3, 3, padding="valid"), width=3), torch.randn(5, 2, 4, 4)


@case
def a_transposed_convolution():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)
    return _pooled(layer, width=3), torch.randn(5, 2, 3, 3)


@case
def a_grouped_transposed_convolution():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2, dilation=2)
    return _pooled(layer, width=6), torch.randn(5, 4, 3)


@case
def a_transposed_convolution_over_space():
    layer = nn.ConvTranspose3d(2, 3, 2, bias=False)
    return _pooled(layer, width=3), torch.randn(5, 2, 2, 3, 2)


@case
def one_convolution_called_on_two_sizes():
    """A detection head over a pyramid of features."""
    parts = {"conv": nn.Conv2d(2, 2, 3, padding=1), "head": nn.Linear(2, 2)}

    def compute(net, x):
        fine = net.conv(x).tanh()
        coarse = net.conv(functional.avg_pool2d(fine, 2)).tanh()
        return net.head(fine.mean((2, 3)) + coarse.mean((2, 3)))

    return Net(compute, **parts), torch.randn(5, 2, 6, 6)


@case
def an_activation_in_place_after_a_convolution_and_a_residual_added_in_place():
    parts = {"a": nn.Conv2d(2, 3, 3, padding=1), "b": nn.Conv2d(3, 3, 3, padding=1)}

    def compute(net, x):
        h = functional.relu(net.a(x), inplace=True)
        out = net.b(h)
        out += h
        return net.head(functional.relu_(out).mean((2, 3)))

    return Net(compute, **parts, head=nn.Linear(3, 2)), torch.randn(5, 2, 4, 4)


@case
def channels_last_in_inputs_and_weights():
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)
    model = _pooled(*layers, width=4).to(memory_format=torch.channels_last)
    return model, torch.randn(5, 3, 6, 6).contiguous(memory_format=torch.channels_last)


@case
def max_pooling_between_convolutions():
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2)
    return _pooled(*layers, width=4), torch.randn(5, 2, 6, 6)


@case
def max_pooling_undone_at_the_places_it_took():
    parts = {"a": nn.Conv2d(2, 3, 3, padding=1), "b": nn.Conv2d(3, 2, 3), "head": nn.Linear(2, 2)}

    def compute(net, x):
        small, places = functional.max_pool2d(net.a(x), 2, return_indices=True)
        return net.head(net.b(functional.max_unpool2d(small.tanh(), places, 2)).tanh().mean((2, 3)))

    return Net(compute, **parts), torch.randn(5, 2, 4, 4)


@case
def upsampling_by_nearest_and_by_bilinear_interpolation():
    layers = (
        nn.Conv2d(2, 3, 3),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(3, 3, 3),
        nn.Upsample(size=(5, 6), mode="bilinear", align_corners=False),
        nn.Conv2d(3, 2, 2),
    )
    return _pooled(*layers, width=2), torch.randn(5, 2, 4, 4)


@case
def pixels_shuffled_out_of_channels():
    layers = nn.Conv2d(2, 8, 3, padding=1), nn.PixelShuffle(2), nn.Tanh(), nn.Conv2d(2, 3, 2)
    return _pooled(*layers, width=3), torch.randn(5, 2, 3, 3)


@case
def a_grid_sampled_under_a_learned_affine_map():
    """A spatial transformer with one map for all samples, and features to be moved."""
    parts = {"map": torch.tensor([[0.9, 0.1, 0.0], [-0.1, 1.1, 0.1]]), "conv": nn.Conv2d(2, 3, 3)}

    def compute(net, x):
        h = net.conv(x)
        grid = functional.affine_grid(net.map.expand(len(x), 2, 3), h.shape, align_corners=False)
        moved = functional.grid_sample(h, grid, align_corners=False)
        return net.head(moved.tanh().mean((2, 3)))

    return Net(compute, **parts, head=nn.Linear(3, 2)), torch.randn(5, 2, 5, 5)


@case
def patches_cut_out_by_unfold_and_folded_back():
    parts = {"weight": torch.randn(3, 8), "head": nn.Linear(3, 2)}

    def compute(net, x):
        patches = functional.unfold(x, 2)
        h = functional.fold((net.weight @ patches).tanh(), (3, 3), 1)
        return net.head(h.mean((2, 3)))

    return Net(compute, **parts), torch.randn(5, 2, 4, 4)


@case
def a_convolution_whose_kernel_is_standardised_first():
    parts = {"weight": torch.randn(3, 2, 3, 3), "bias": torch.randn(3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        spread, mean = torch.std_mean(net.weight, dim=(1, 2, 3), keepdim=True)
        h = functional.conv2d(x, (net.weight - mean) / (spread + 1e-5), net.bias)
        return net.head(h.tanh().mean((2, 3)))

    return Net(compute, **parts), torch.randn(5, 2, 5, 5)


@case
def a_map_of_outputs_without_a_head():
    """Segmentation: every pixel has logits of its own."""
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1)
    return nn.Sequential(*layers), torch.randn(4, 2, 3, 3)


@case
def samples_and_time_merged_before_a_convolution():
    """Video frames: (N, T, ...) flattened into the batch and taken apart again."""
    parts = {"conv": nn.Conv2d(2, 3, 3), "mix": nn.Linear(3, 3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        frames = net.conv(x.flatten(0, 1)).tanh().mean((2, 3)).unflatten(0, x.shape[:2])
        return net.head((frames + net.mix(frames).tanh()).mean(1))

    return Net(compute, **parts), torch.randn(5, 3, 2, 4, 4)
