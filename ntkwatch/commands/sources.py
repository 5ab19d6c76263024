"""Which model, data and settings a command is about: options that commands share, and their use.

torch is imported when a model is asked for, not before.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from torch import nn

    from ntkwatch.watch.probe import ProbeBatch

__all__ = [
    "check_data_named",
    "find_local_modules",
    "kernel_settings",
    "made_model",
    "made_probe",
    "source_options",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--set",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Argument that the model is built with; may be given several times.",
    ),
    click.option(
        "--data",
        default=None,
        metavar="NAME",
        help="Where the probe comes from: pkg.mod:Name of a LightningDataModule, DataLoader, "
        "dataset or batch, or of a function that returns one.",
    ),
    click.option(
        "--probe",
        "probe_file",
        default=None,
        metavar="FILE",
        help="A probe.safetensors that a watched run left, instead of --data.",
    ),
    click.option(
        "--probe-size",
        type=click.IntRange(min=2),
        default=64,
        show_default=True,
        help="Probe points to draw from the data; a verdict needs 32 or more.",
    ),
    click.option(
        "--outputs",
        default="auto",
        show_default=True,
        help="Outputs in the kernel: auto, full, trace, sum or random:K.",
    ),
    click.option(
        "--params",
        multiple=True,
        metavar="PATTERN",
        help='Parameters in the kernel, such as "encoder.*"; all trainable ones by default. May be '
        "given several times.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "structured", "vmap", "loop", "sketch"]),
        default="auto",
        show_default=True,
        help="How to compute: auto finds an exact way; sketch estimates drift, for coupled "
        "samples and very large problems.",
    ),
    click.option(
        "--memory-budget",
        default="1GiB",
        show_default=True,
        help="Memory that the computation may take; does not change the numbers.",
    ),
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        help="Where to compute, such as cuda or cuda:1.",
    ),
)


def source_options(command: _Command) -> _Command:
    """Add the options that say how to make a model and its probe.

    Args:
        command: The command's function.

    Returns:
        The same with options.
    """
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def made_model(
    name: str, kept: dict[str, Any], arguments: tuple[str, ...], device: str
) -> "nn.Module":
    """Return the model that a user named, on a device.

    Args:
        name: Dotted path.
        kept: Arguments as a checkpoint keeps them.
        arguments: As given to --set.
        device: Where it is to be.

    Returns:
        The model.

    Raises:
        InputError: If there is no such device, or no such model.
    """
    import torch

    from ntkwatch.errors import InputError
    from ntkwatch.integrations.named_parts import build_model, parse_settings

    find_local_modules()
    model = build_model(name, kept, parse_settings(arguments))
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the model cannot be put on --device {device} ({str(error).splitlines()[0]}), so "
            "nothing can be computed there. Leave --device out to compute on the CPU."
        ) from error


def made_probe(
    data: str | None,
    probe_file: str | None,
    model: "nn.Module",
    size: int,
    kept: dict[str, Any] | None = None,
) -> "ProbeBatch":
    """Return the probe that a user named.

    Args:
        data: As given to --data.
        probe_file: As given to --probe.
        model: That it is for.
        size: Probe points.
        kept: Arguments of the data module as a checkpoint keeps them.

    Returns:
        The probe.
    """
    from pathlib import Path

    from ntkwatch.integrations.named_parts import build_probe
    from ntkwatch.watch.store import read_probe

    if probe_file is not None:
        return read_probe(Path(probe_file))
    assert data is not None
    return build_probe(data, model, size, kept=kept)


def check_data_named(data: str | None, probe_file: str | None) -> None:
    """Refuse a call without data, or with two kinds of it.

    Args:
        data: As given to --data.
        probe_file: As given to --probe.

    Raises:
        click.UsageError: If it is so.
    """
    if data is None and probe_file is None:
        raise click.UsageError(
            "a kernel is computed on data: give --data pkg.mod:Name, or --probe FILE."
        )
    if data is not None and probe_file is not None:
        raise click.UsageError(
            "a kernel is computed on one probe: give --data, or --probe FILE, and not both."
        )


def kernel_settings(
    outputs: str, params: tuple[str, ...], engine: str, memory_budget: str
) -> dict[str, Any]:
    """Return what these options mean as arguments of ``KernelTracker``."""
    return {
        "outputs": outputs,
        "params": list(params) or None,
        "engine": engine,
        "memory_budget": memory_budget,
    }


def find_local_modules() -> None:
    """Look for modules in the current folder: ``python -m`` does, a console script does not."""
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
