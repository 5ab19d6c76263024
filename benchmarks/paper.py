"""What an observation of a large model costs, on paper: no weight is made and nothing is measured.

Run: ``python benchmarks/paper.py`` (a minute, little memory).

The model is put on the meta device; ``ntkwatch.plan`` says what its kernel takes, and torch's
counter of matrix products what a forward pass takes. ``large.py`` holds both against a model that
does exist.
"""

import argparse
import copy
from dataclasses import dataclass

import torch
from measuring import table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ntkwatch import plan
from ntkwatch.jacobian.forward import ForwardFn

__all__ = ["Estimate", "estimate"]

_GIB = 2**30
_HEAD = (
    "probe",
    "budget",
    "devices",
    "passes",
    "T mults",
    "of a step",
    "seconds",
    "GiB in",
    "seconds",
    "GiB held",
)
# Of a device: T multiplications a second in float32, GB a second that come in by number of devices.
RATE = 20
LINKS = {8: 300, 64: 40}

# What a later observation takes beside its kernel, in forward passes of the probe; ``large.py``
# counts it: the outputs, and a forward-mode pass of about three for the linearization error.
BESIDE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The cost of watching a model, in multiplications, bytes and passes.

    Attributes:
        parameters: How many numbers.
        forward: Multiplications of a forward pass of the probe.
        contraction: Of the kernel, beyond passes.
        passes: Backward passes of the kernel.
        operands: Bytes of all operands together; ``memory_budget`` bounds what is held of them.
        samples: In the probe.
    """

    parameters: int
    forward: float
    contraction: float
    passes: int
    operands: int
    samples: int

    @property
    def training(self) -> float:
        """Of a training step on as many samples: forward, and two products per weight backward."""
        return 3 * self.forward

    @property
    def kernel(self) -> float:
        """Of a later kernel, whose ownership is remembered.

        Several passes reach down to different depths, since each brings operands of some layers.
        """
        return (1 + (self.passes + 1) / 2) * self.forward + self.contraction

    @property
    def observation(self) -> float:
        """Of a later observation."""
        return self.kernel + BESIDE * self.forward

    def __str__(self) -> str:
        f = self.forward
        return (
            f"on paper: forward pass {f / 1e9:.1f} G, kernel {self.kernel / 1e9:.1f} G "
            f"({self.kernel / self.training:.2f} training steps, {self.passes} backward passes, "
            f"contractions {self.contraction / f:.2f} forward passes, operands "
            f"{self.operands / 2**30:.2f} GiB)"
        )


def estimate(
    model: nn.Module, inputs: Tensor, forward: ForwardFn, *, memory_budget: int
) -> Estimate:
    """Return what watching a model costs, from shapes alone.

    Args:
        model: On any device.
        inputs: The probe; its values are not looked at.
        forward: Gives one number per sample.
        memory_budget: In bytes.

    Returns:
        The estimate.
    """
    shape = copy.deepcopy(model).to("meta").eval()
    probe = inputs.to("meta")
    planned = plan(shape, probe, forward=forward, outputs="trace", memory_budget=memory_budget)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        forward(shape, probe)
    return Estimate(
        parameters=sum(p.numel() for p in shape.parameters()),
        forward=counter.get_total_flops() / 2,
        contraction=planned.multiplications,
        passes=planned.passes,
        operands=sum(step.nbytes for step in planned.steps),
        samples=len(probe),
    )


def llama(hidden: int = 4096, inner: int = 11008, depth: int = 32, words: int = 32000) -> nn.Module:
    """Return LLaMA's shape, 7B parameters by default, without values."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=depth,
        vocab_size=words,
        use_cache=False,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


def mean_log_probability(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return one number per sequence, (N, 1), as ``models.py`` does.

    The mask is made here: transformers would look into one of two dimensions, and on the meta
    device there is nothing to see.
    """
    n, t = tokens.shape
    mask = torch.zeros(n, 1, t, t, dtype=next(model.parameters()).dtype, device=tokens.device)
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return -loss.view(n, -1).mean(dim=1, keepdim=True)


def activations(model: nn.Module, length: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, per sequence."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # which holds them, so that no two have the same number

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mean_log_probability(model, torch.zeros(1, length, dtype=torch.long, device="meta"))
    return sum(t.untyped_storage().nbytes() for n, t in kept.items() if n not in weights)


def _line(
    found: Estimate, kept: int, largest: int, budget: float, name: str, devices: int, speed: float
) -> list[str]:
    """Of one of so many devices: every one makes all passes, each with its own shards."""
    weights = 4 * found.parameters
    # What others hold comes in once per forward pass and once per backward pass.
    moved = (1 + found.passes + BESIDE) * weights * (devices - 1) / devices
    # Shards of the weights, of the reference and of the way between them.
    memory = 3 * weights / devices + largest + found.samples * kept + budget * _GIB
    return [
        name,
        f"{budget:g}",
        str(devices),
        str(found.passes),
        f"{found.observation / 1e12:.0f}",
        f"{found.observation / found.training:.1f}",
        f"{found.observation / (RATE * 1e12):.0f}",
        f"{moved / _GIB:.0f}",
        f"{moved / (speed * 1e9):.0f}",
        f"{memory / _GIB:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", nargs="*", default=["8x512", "32x128", "64x128"])
    parser.add_argument("--budgets", type=float, nargs="*", default=[4, 24], help="in GiB")
    parser.add_argument("--depth", type=int, default=32)
    given = parser.parse_args()
    model = llama(depth=given.depth).eval()
    blocks = [*model.model.layers, model.model.embed_tokens]
    largest = 4 * max(sum(p.numel() for p in block.parameters()) for block in blocks)
    count = sum(p.numel() for p in model.parameters())
    print(
        f"LLaMA's shape, {count / 1e9:.2f}G parameters in float32 ({4 * count / _GIB:.1f} GiB), "
        f"sharded.\nAssumed: {RATE} T multiplications a second; "
        + ", ".join(f"{speed} GB/s into each of {devices}" for devices, speed in LINKS.items())
        + " devices."
    )
    rows = []
    for name in given.probes:
        samples, length = map(int, name.split("x"))
        probe = torch.zeros(samples, length, dtype=torch.long, device="meta")
        kept = activations(model, length)
        for budget in given.budgets:
            size = int(budget * _GIB)
            found = estimate(model, probe, mean_log_probability, memory_budget=size)
            rows += [
                _line(found, kept, largest, budget, name, devices, speed)
                for devices, speed in LINKS.items()
            ]
        print(f"{name}: {found}; activations {samples * kept / _GIB:.1f} GiB", flush=True)
    print(table(_HEAD, rows))


if __name__ == "__main__":
    main()
