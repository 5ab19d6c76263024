"""Everything about a model and torch that a measurement could touch, taken down and compared."""

import random

import numpy as np
import torch
from torch.utils import checkpoint

from ntkwatch.jacobian.outputs import random_directions

__all__ = ["assert_same", "state_of", "switches"]


def state_of(model):
    """Everything about a model and torch that a measurement could touch, by value and identity."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "ids": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "versions": {name: p._version for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone(), p.grad._version)
            for name, p in model.named_parameters()
        },
        "hooks": {
            name: [len(hooks) for key, hooks in sorted(vars(module).items()) if "hooks" in key]
            for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "random": [
            torch.get_rng_state(),
            # With --typecheck, beartype itself draws from Python's stream at every call.
            None if hasattr(random_directions, "__wrapped__") else random.getstate(),
            [np.asarray(part) for part in np.random.get_state()],
        ],
        "torch": switches(),
    }


def switches():
    return {
        "precision": torch.get_float32_matmul_precision(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "hook": checkpoint._checkpoint_hook,
        "apply": "apply" in vars(checkpoint.CheckpointFunction),
    }


def assert_same(before, after, where="state"):
    assert type(before) is type(after), where
    if isinstance(before, dict):
        assert before.keys() == after.keys(), where
        for key in before:
            assert_same(before[key], after[key], f"{where}.{key}")
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after), where
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(before, torch.Tensor):
        assert torch.equal(before, after), where
    elif isinstance(before, np.ndarray):
        np.testing.assert_array_equal(before, after, err_msg=where)
    else:
        assert before == after, where
