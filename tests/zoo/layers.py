"""The layers of torch.nn, each between two others where it has no weights of its own."""

from collections.abc import Callable
from typing import Any

import torch
from jacobian.cases.case import Net
from torch import nn
from zoo.entry import COUNT, Entry, layer

__all__ = ["ENTRIES", "NO_LAYERS"]

# What torch.nn exports beside layers: losses, which give no outputs per sample; containers; what
# makes one of the layers below at its first call.
_ALL = [name for name in dir(nn) if isinstance(getattr(nn, name), type)]
NO_LAYERS = {
    *(name for name in _ALL if name.endswith("Loss") and not name.startswith("Adaptive")),
    *(name for name in _ALL if name.startswith(("Lazy", "Uninitialized"))),
    *("Container", "DataParallel", "Module", "ModuleDict", "ModuleList", "Sequential"),
    *("Buffer", "Parameter", "ParameterDict", "ParameterList", "RNNBase", "RNNCellBase"),
    *("NLLLoss2d", "LinearCrossEntropyOptions"),
}
_SIZES = {1: (6,), 2: (6, 6), 3: (4, 4, 4)}


def _between(before: nn.Module, middle: nn.Module, after: nn.Module) -> nn.Module:
    return Net(
        lambda net, x: net.after(net.middle(net.before(x))),
        before=before,
        middle=middle,
        after=after,
    )


def _dense(name: str, *arguments: Any, outputs: int = 4, **options: Any) -> Entry:
    """On a vector, between two linear layers."""

    def make() -> nn.Module:
        middle = getattr(nn, name)(*arguments, **options)
        return _between(nn.Linear(3, 4), middle, nn.Linear(outputs, 2))

    return layer(name, make, (3,))


def _spatial(name: str, dims: int, *arguments: Any, channels: int = 4, **options: Any) -> Entry:
    """On a signal, an image or a volume, between two convolutions."""

    def make() -> nn.Module:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        middle = getattr(nn, name)(*arguments, **options)
        return _between(conv(2, 4, 1), middle, conv(channels, 2, 1))

    return layer(name, make, (2, *_SIZES[dims]))


def _alone(
    name: str, make: Callable[[], nn.Module], *shapes: tuple[int, ...], **more: Any
) -> Entry:
    return layer(name, make, *shapes, **more)


def _words(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(7, (COUNT, *shape))


def _first(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """Of a recurrent layer the outputs, and a head on them."""
    return Net(lambda net, x: net.head(net.layer(x)[0]), layer=module, **parts)


def _unpool(dims: int) -> Callable[[], nn.Module]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2, return_indices=True)
    back = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)[dims - 1](2)
    return lambda: Net(
        lambda net, x: net.after(net.back(*net.pool(net.before(x)))),
        before=conv(2, 4, 1),
        pool=pool,
        back=back,
        after=conv(4, 2, 1),
    )


ENTRIES = [
    _alone("Linear", lambda: nn.Linear(4, 3), (5, 4)),
    _alone("Bilinear", lambda: nn.Bilinear(4, 3, 2), (4,), (3,)),
    _dense("Identity"),
    *(
        _alone(
            f"Conv{d}d", lambda d=d: getattr(nn, f"Conv{d}d")(2, 4, 3, groups=2), (2, *_SIZES[d])
        )
        for d in (1, 2, 3)
    ),
    *(
        _alone(
            f"ConvTranspose{d}d",
            lambda d=d: getattr(nn, f"ConvTranspose{d}d")(2, 4, 3, stride=2),
            (2, *_SIZES[d]),
        )
        for d in (1, 2, 3)
    ),
    *(_spatial(f"BatchNorm{d}d", d, 4) for d in (1, 2, 3)),
    *(_spatial(f"InstanceNorm{d}d", d, 4, affine=True) for d in (1, 2, 3)),
    _spatial("SyncBatchNorm", 2, 4),
    _spatial("GroupNorm", 2, 2, 4),
    _dense("LayerNorm", 4),
    _dense("RMSNorm", 4),
    _spatial("LocalResponseNorm", 2, 2),
    _spatial("CrossMapLRN2d", 2, 2),
    _alone("Embedding", lambda: nn.Embedding(7, 3, padding_idx=1), draw=_words(4)),
    _alone("EmbeddingBag", lambda: nn.EmbeddingBag(7, 3, mode="mean"), draw=_words(4)),
    *(
        _alone(
            name,
            lambda name=name: _first(
                getattr(nn, name)(3, 4, num_layers=2, bidirectional=True, batch_first=True),
                head=nn.Linear(8, 2),
            ),
            (4, 3),
        )
        for name in ("RNN", "LSTM", "GRU")
    ),
    _alone("RNNCell", lambda: nn.RNNCell(3, 4), (3,), (4,)),
    _alone("GRUCell", lambda: nn.GRUCell(3, 4), (3,), (4,)),
    _alone("LSTMCell", lambda: Net(lambda net, x: net.cell(x)[0], cell=nn.LSTMCell(3, 4)), (3,)),
    _alone(
        "MultiheadAttention",
        lambda: Net(
            lambda net, x: net.mix(x, x, x)[0], mix=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        (3, 4),
    ),
    _alone(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True),
        (3, 4),
    ),
    _alone(
        "TransformerDecoderLayer",
        lambda: nn.TransformerDecoderLayer(4, 2, 6, batch_first=True),
        (3, 4),
        (2, 4),
    ),
    _alone(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 2),
        (3, 4),
    ),
    _alone(
        "TransformerDecoder",
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6, batch_first=True), 2),
        (3, 4),
        (2, 4),
    ),
    _alone("Transformer", lambda: nn.Transformer(4, 2, 1, 1, 6, batch_first=True), (3, 4), (2, 4)),
    _dense("PReLU", 4),
    *(
        _dense(name)
        for name in (
            "CELU",
            "ELU",
            "GELU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "LeakyReLU",
            "LogSigmoid",
            "Mish",
            "RReLU",
            "ReLU",
            "ReLU6",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softplus",
            "Softshrink",
            "Softsign",
            "Tanh",
            "Tanhshrink",
        )
    ),
    *(_dense(name, dim=-1) for name in ("LogSoftmax", "Softmax", "Softmin")),
    _dense("Threshold", 0.1, 0.0),
    _dense("GLU", outputs=2),
    _spatial("Softmax2d", 2),
    *(_dense(name) for name in ("AlphaDropout", "Dropout", "FeatureAlphaDropout")),
    *(_spatial(f"Dropout{d}d", d) for d in (1, 2, 3)),
    *(_spatial(f"{kind}Pool{d}d", d, 2) for kind in ("Avg", "Max") for d in (1, 2, 3)),
    *(_spatial(f"LPPool{d}d", d, 2, 2) for d in (1, 2, 3)),
    *(_spatial(f"Adaptive{kind}Pool{d}d", d, 2) for kind in ("Avg", "Max") for d in (1, 2, 3)),
    *(_alone(f"MaxUnpool{d}d", _unpool(d), (2, *_SIZES[d])) for d in (1, 2, 3)),
    *(_spatial(f"FractionalMaxPool{d}d", d, 2, output_size=2) for d in (2, 3)),
    *(
        _spatial(f"{kind}Pad{d}d", d, 1)
        for kind in ("Circular", "Reflection", "Replication", "Zero")
        for d in (1, 2, 3)
    ),
    *(_spatial(f"ConstantPad{d}d", d, 1, 0.5) for d in (1, 2, 3)),
    _spatial("ChannelShuffle", 2, 2),
    _spatial("PixelShuffle", 2, 2, channels=1),
    _spatial("PixelUnshuffle", 2, 2, channels=16),
    _spatial("Upsample", 2, scale_factor=2, mode="bicubic"),
    _spatial("UpsamplingBilinear2d", 2, scale_factor=2),
    _spatial("UpsamplingNearest2d", 2, scale_factor=2),
    _alone(
        "Flatten", lambda: nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(12, 2)), (4, 2)
    ),
    _alone(
        "Unflatten",
        lambda: nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2)),
        (2,),
    ),
    _alone(
        "Fold", lambda: _between(nn.Linear(4, 4), nn.Fold((3, 3), 2), nn.Conv2d(1, 2, 1)), (4, 4)
    ),
    _alone(
        "Unfold", lambda: _between(nn.Conv2d(1, 2, 1), nn.Unfold(2), nn.Conv1d(8, 2, 1)), (1, 3, 3)
    ),
    *(
        _alone(
            name,
            lambda name=name: Net(
                lambda net, x, y: net.far(net.up(x), net.up(y))[:, None],
                up=nn.Linear(3, 4),
                far=getattr(nn, name)(),
            ),
            (3,),
            (3,),
        )
        for name in ("CosineSimilarity", "PairwiseDistance")
    ),
    _alone(
        "AdaptiveLogSoftmaxWithLoss",
        lambda: Net(
            lambda net, x: net.head.log_prob(x), head=nn.AdaptiveLogSoftmaxWithLoss(4, 7, [3])
        ),
        (4,),
    ),
]
