"""A measurement leaves the model as found: modes, weights, attributes, random streams, switches.

Evaluation mode is set flag by flag and restored flag by flag, without calling the user's
``train()`` or ``eval()``, which may do more than set flags (merge adapters, say).
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ntkwatch.errors import ModelChangedError, WeightsChangedError
from ntkwatch.jacobian.attributes import kept_attributes
from ntkwatch.jacobian.checksum import Checksum
from ntkwatch.jacobian.quiet import quiet_torch
from ntkwatch.jacobian.shards import reshard, set_up, shards_kept

_LOGGING = ("log", "log_dict")

__all__ = ["kept_random_streams", "undisturbed"]


@contextmanager
def undisturbed(
    model: nn.Module, *, evaluation: bool = True, copies: Sequence[Mapping[str, Tensor]] = ()
) -> Iterator[None]:
    """Measure inside this; afterwards, also after an exception, the model is as before.

    Args:
        model: The model to be measured.
        evaluation: Whether to measure in the modes that ``model.eval()`` would give.
        copies: Weights and buffers of earlier moments by clean name. What a forward pass changes in
            spite of everything is put back from them, where they hold just what was there.

    Yields:
        Nothing.

    Raises:
        ModelChangedError: If a parameter was written to all the same; a ``WeightsChangedError`` if
            weights or buffers were changed.
    """
    set_up(model)
    reshard(model)  # whose parameters are then the same objects before and after
    # A parameter made in inference mode has no version; its copies are used throughout.
    before = [(n, p, p._version) for n, p in model.named_parameters() if not p.is_inference()]
    checksum = Checksum(model)
    try:
        with _quiet(model, evaluation=evaluation):
            yield
    except Exception:
        _check_unchanged(model, checksum, copies)
        raise
    _check_unchanged(model, checksum, copies)
    written = [name for name, p, version in before if p._version != version]
    if written:
        raise ModelChangedError(
            f"the forward pass of {type(model).__name__} wrote to {len(written)} of its own "
            f"parameters in evaluation mode ({', '.join(written[:3])}), which changed no value "
            "this time and could at another. Move such updates out of forward(), or pass forward= "
            "without them."
        )


@contextmanager
def _quiet(model: nn.Module, *, evaluation: bool) -> Iterator[None]:
    """Modes, attributes, streams and switches are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(quiet_torch(_devices(model)))
        stack.enter_context(kept_random_streams(_devices(model)))
        stack.enter_context(kept_attributes(model))
        _silence(model)
        stack.enter_context(shards_kept(model))
        try:
            if evaluation:
                for module, training in _evaluation_modes(model).items():
                    module.training = training
            yield
        finally:
            for module, training in modes:
                module.training = training


def _silence(model: nn.Module) -> None:
    """Let modules that log (Lightning's ``self.log``) log nothing; their attributes are put back.

    What a forward pass logs would stand in the training's curves, and be what callbacks act on.
    """
    for module in model.modules():
        if all(callable(getattr(type(module), name, None)) for name in _LOGGING):
            vars(module).update(dict.fromkeys(_LOGGING, _log_nothing))


def _log_nothing(*args: object, **settings: object) -> None:
    pass


def _check_unchanged(
    model: nn.Module, checksum: Checksum, copies: Sequence[Mapping[str, Tensor]]
) -> None:
    """Refuse a measurement that changed what the model is trained with; put back what can be."""
    changed = checksum.changed()
    if not changed:
        return
    lost = checksum.put_back(*copies)
    then = (
        f"There is no copy of {', '.join(lost[:3])}, so the training goes on with changed values: "
        "start it again from a checkpoint"
        if lost
        else "They were put back from copies, so the training is as it would have been"
    )
    raise WeightsChangedError(
        f"the forward pass of {type(model).__name__} changed {len(changed)} of the tensors that it "
        f"is trained with ({', '.join(changed[:3])}) while it was measured, in a way that torch "
        f"does not see (numpy, an extension, a reference of its own). {then}. Move such updates "
        "out of forward(), or pass forward= without them."
    )


def _evaluation_modes(model: nn.Module) -> dict[nn.Module, bool]:
    """Which mode each module would be in after ``model.eval()``."""
    # Only a module that overrides ``train`` or ``eval`` can surprise. It is asked on a shell: the
    # same objects with copied dictionaries and parameters that hold no data, so that whatever it
    # does besides touches nothing.
    plain = dict.fromkeys(model.modules(), False)
    if all(_keeps_train(module) for module in plain):
        return plain
    try:
        shells: dict[nn.Module, nn.Module] = {}
        _shell(model, shells).eval()
    except Exception:  # whatever the override needs, it is not ours to debug
        return plain
    return {module: shells[module].training for module in plain}


def _keeps_train(module: nn.Module) -> bool:
    own = type(module)
    return own.train is nn.Module.train and own.eval is nn.Module.eval


def _shell(module: nn.Module, shells: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in shells:
        return shells[module]
    shell = shells[module] = object.__new__(type(module))
    shell.__dict__.update(module.__dict__)
    for kind in ("_parameters", "_buffers"):
        tensors = {name: _hollow(tensor) for name, tensor in module.__dict__[kind].items()}
        shell.__dict__[kind] = tensors
    children = module.__dict__["_modules"].items()
    shell.__dict__["_modules"] = {
        name: None if child is None else _shell(child, shells) for name, child in children
    }
    return shell


def _hollow(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    empty = torch.empty_like(tensor.detach(), device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _devices(model: nn.Module) -> list[torch.device]:
    tensors = [*model.parameters(), *model.buffers()]
    return list(dict.fromkeys(tensor.device for tensor in tensors)) or [torch.device("cpu")]


@contextmanager
def kept_random_streams(devices: list[torch.device]) -> Iterator[None]:
    """Put the random streams of torch, Python and numpy back afterwards.

    Args:
        devices: Whose generators to keep, besides the CPU's.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), copy.deepcopy(np.random.get_state())
    with ExitStack() as stack:
        for kind in {device.type for device in devices if device.type not in ("cpu", "meta")}:
            numbers = [d.index or 0 for d in devices if d.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=numbers, device_type=kind))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
