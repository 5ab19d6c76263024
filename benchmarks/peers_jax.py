"""The process that computes kernels with neural-tangents, for ``peers.py``; in JAX, without torch.

The models of ``problems.py`` again, as functions of the weights that torch drew (a file of arrays
under their names there). Each of the three implementations is jitted with ``vmap_axes=0``, as its
documentation advises, compiled as part of the first kernel, and waited for.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from jax import lax
from worker import Make, serve

Weights = dict[str, jnp.ndarray]

IMPLEMENTATIONS = {"nt-contraction": 1, "nt-products": 2, "nt-structured": 3}


def linear(w: Weights, name: str, x: jnp.ndarray) -> jnp.ndarray:
    x = x @ w[f"{name}.weight"].T
    return x + w[f"{name}.bias"] if f"{name}.bias" in w else x


def convolution(w: Weights, name: str, x: jnp.ndarray, stride: int, pad: int) -> jnp.ndarray:
    x = lax.conv_general_dilated(
        x,
        w[f"{name}.weight"],
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return x + w[f"{name}.bias"][:, None, None] if f"{name}.bias" in w else x


def layer_norm(w: Weights, name: str, x: jnp.ndarray) -> jnp.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w: Weights, fixed: Weights, x: jnp.ndarray) -> jnp.ndarray:
    names = sorted({name.split(".")[0] for name in w}, key=int)
    for name in names[:-1]:
        x = jax.nn.relu(linear(w, name, x))
    return linear(w, names[-1], x)


def resnet(w: Weights, fixed: Weights, x: jnp.ndarray) -> jnp.ndarray:
    def norm(name: str, x: jnp.ndarray) -> jnp.ndarray:
        scale = lax.rsqrt(fixed[f"{name}.running_var"] + 1e-5)
        x = (x - fixed[f"{name}.running_mean"][:, None, None]) * scale[:, None, None]
        return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    x = jax.nn.relu(norm("bn", convolution(w, "conv", x, 1, 1)))
    for index in range(8):
        name = f"blocks.{index}"
        stride = 2 if index in (2, 4, 6) else 1
        y = jax.nn.relu(norm(f"{name}.bn1", convolution(w, f"{name}.conv1", x, stride, 1)))
        y = norm(f"{name}.bn2", convolution(w, f"{name}.conv2", y, 1, 1))
        if f"{name}.shortcut.0.weight" in w:
            x = norm(f"{name}.shortcut.1", convolution(w, f"{name}.shortcut.0", x, stride, 0))
        x = jax.nn.relu(x + y)
    return linear(w, "head", x.mean((2, 3)))


def layer(w: Weights, name: str, x: jnp.ndarray, heads: int, causal: bool) -> jnp.ndarray:
    """Attention and a perceptron, each behind a LayerNorm, each beside a shortcut."""
    n, t, width = x.shape
    qkv = linear(w, f"{name}.qkv", layer_norm(w, f"{name}.norm1", x))
    q, k, v = qkv.reshape(n, t, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(width // heads)
    if causal:
        scores = jnp.where(np.tril(np.ones((t, t), bool)), scores, -jnp.inf)
    mixed = jax.nn.softmax(scores, -1) @ v
    x = x + linear(w, f"{name}.proj", mixed.swapaxes(1, 2).reshape(n, t, width))
    hidden = jax.nn.gelu(linear(w, f"{name}.up", layer_norm(w, f"{name}.norm2", x)))
    return x + linear(w, f"{name}.down", hidden)


def transformer(
    w: Weights, x: jnp.ndarray, heads: int, causal: bool, prefix: str = ""
) -> jnp.ndarray:
    start = f"{prefix}layers."
    for index in sorted({int(name[len(start) :].split(".")[0]) for name in w if start in name}):
        x = layer(w, f"{start}{index}", x, heads, causal)
    return layer_norm(w, f"{prefix}norm", x)


def vit(w: Weights, fixed: Weights, x: jnp.ndarray) -> jnp.ndarray:
    x = convolution(w, "patches", x, 4, 0)
    x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2) + w["position.weight"]
    return linear(w, "head", transformer(w, x, int(fixed["heads"]), causal=False).mean(1))


def gpt(w: Weights, fixed: Weights, tokens: jnp.ndarray) -> jnp.ndarray:
    x = w["model.tokens.weight"][tokens] + w["model.positions.weight"][: tokens.shape[1]]
    x = transformer(w, x, int(fixed["heads"]), causal=True, prefix="model.")
    logits = x @ w["model.head.weight"].T
    return logits.reshape(len(logits), -1) @ fixed["directions"].T


_MODELS = {"mlp": mlp, "resnet": resnet, "vit": vit, "gpt": gpt}


def load(request: dict[str, Any]) -> Make:
    given = np.load(request["weights"])
    w = {name[2:]: jnp.asarray(given[name]) for name in given.files if name.startswith("p.")}
    # Plain numbers stay numbers: a shape cannot follow from a traced array.
    fixed = {name[2:]: given[name] for name in given.files if name.startswith("b.")}
    inputs = jnp.asarray(given["inputs"])
    model, full = _MODELS[request["problem"]], request["outputs"] == "full"

    def make() -> Callable[[], np.ndarray]:
        kernel_of = nt.empirical_ntk_fn(
            lambda theta, x: model(theta, fixed, x),
            trace_axes=() if full else (-1,),
            vmap_axes=0,
            implementation=IMPLEMENTATIONS[request["way"]],
        )
        # Its trace over outputs is their mean: times C, it is the sum that the others give.
        scale = 1 if full else jax.eval_shape(lambda x: model(w, fixed, x), inputs).shape[-1]
        sum_of = jax.jit(lambda x, theta: scale * kernel_of(x, None, theta))
        compiled = sum_of.lower(inputs, w).compile()
        return lambda: np.asarray(compiled(inputs, w).block_until_ready())

    return make


if __name__ == "__main__":
    serve(load)
