"""What an animal of the zoo is: a tiny model of one family, with inputs, in one line of a list.

Nothing here imports ntkwatch. The weights are random and larger than at initialisation, so that no
attention is uniform and no norm has the scale one.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["COUNT", "WORDS", "Entry", "hugging", "layer", "masked", "tokens"]

COUNT = 3  # samples
WORDS = {"vocab_size": 11, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# As small as a weight can be and still matter: attention with it is far from uniform.
_STD = 0.4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One model and what must be found.

    Attributes:
        name: Of the model, as its users call it.
        variant: What is different about this one, such as a mask; empty if nothing.
        make: Gives the model, in float64.
        draw: Gives its inputs, samples first.
        settings: Of ``empirical_ntk``.
        refused: Words of the refusal, if there is no kernel to be had.
        whole: Why the oracle takes all samples in one pass and not each in its own; or empty.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[], Any]
    variant: str = ""
    settings: Mapping[str, Any]
    refused: str = ""
    whole: str = ""

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name}, {self.variant}" if self.variant else self.name

    def build(self) -> tuple[nn.Module, Any]:
        """Return the model in evaluation mode and its inputs, the same at each call."""
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        said = logging.root.manager.disable
        logging.disable(logging.WARNING)  # transformers tells of slower ways that it takes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = self.make().double().eval()
            _roughen(model)
            return model, self.draw()
        finally:
            torch.set_default_dtype(default)
            logging.disable(said)


@torch.no_grad()
def _roughen(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=_STD)
        parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)


def tokens(length: int = 5, name: str = "input_ids") -> Callable[[], dict[str, Tensor]]:
    """Return what draws tokens without any padding among them."""
    return lambda: {name: torch.randint(3, 11, (COUNT, length))}


def hugging(
    name: str,
    kind: str,
    draw: Callable[[], Any],
    *,
    outputs: str = "random:2",
    refused: str = "",
    variant: str = "",
    whole: str = "",
    prepare: Callable[[nn.Module], object] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    **options: Any,
) -> Entry:
    """Return a model of transformers, made from a configuration.

    Args:
        name: Of its family.
        kind: Name of its class.
        draw: Gives the inputs.
        outputs: Setting of ``empirical_ntk``.
        refused: As in ``Entry``.
        variant: As there.
        whole: As there.
        prepare: Called with the model once it is made.
        forward: Setting of ``empirical_ntk``; None to have it guessed.
        **options: Of the configuration.

    Returns:
        The entry.
    """

    def make() -> nn.Module:
        import transformers

        described = getattr(transformers, kind)
        model = described(described.config_class(**options))
        if prepare is not None:
            prepare(model)
        return model

    settings: dict[str, Any] = {"outputs": outputs}
    if forward is not None:
        settings["forward"] = forward
    return Entry(
        name=name,
        variant=variant,
        make=make,
        draw=draw,
        settings=settings,
        refused=refused,
        whole=whole,
    )


def masked(entry: Entry, *, left: bool = False, refused: str = "") -> list[Entry]:
    """Return an entry without and with padding that an attention mask marks.

    Args:
        entry: A model that takes ``input_ids`` and ``attention_mask``.
        left: Whether the padding comes first.
        refused: Words of the refusal of the padded one, if that alone is refused.

    Returns:
        Both.
    """

    def draw() -> dict[str, Tensor]:
        inputs = entry.draw()
        words = inputs["input_ids"]
        mask = torch.ones_like(words)
        mask[1, -1] = mask[2, -2:] = 0
        mask = mask.flip(1) if left else mask
        return {**inputs, "input_ids": words * mask, "attention_mask": mask}

    padded = replace(entry, variant="padded", draw=draw, refused=refused or entry.refused)
    return [entry, padded]


def layer(name: str, make: Callable[[], nn.Module], *shapes: tuple[int, ...], **more: Any) -> Entry:
    """Return a layer with real inputs of these shapes per sample, or with what ``draw`` gives.

    Args:
        name: Of the layer.
        make: Gives the model.
        *shapes: Of its inputs, per sample.
        **more: As in ``Entry``.

    Returns:
        The entry.
    """

    def draw() -> Any:
        found = tuple(torch.randn(COUNT, *shape, dtype=torch.float64) for shape in shapes)
        return found if len(found) > 1 else found[0]

    more = {"draw": draw, "settings": {"outputs": "random:2:plain"}} | more
    return Entry(name=name, make=make, **more)
