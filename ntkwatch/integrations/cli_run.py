"""What a run of LightningCLI says of itself: the classes of model and data, in its config.yaml.

A file's word is not trusted far: what it names must be a module or a data module, installed or in
the current folder, and is built with plain values and modules alone.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ntkwatch.errors import InputError

__all__ = ["CliRun", "Part", "built_arguments", "find_cli_run"]

_CONFIG = "config.yaml"
_MOST_BYTES = 2**20  # of a configuration
_KINDS = {"model": "Module", "data": "LightningDataModule"}  # names of the classes to descend from


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The model or the data of a run.

    Attributes:
        kind: Which of the two.
        name: Dotted path of its class, or None where only the training's script knows it.
        arguments: What it was built with, as the file has it.
        path: The file.
    """

    kind: Literal["model", "data"]
    name: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CliRun:
    """What a run's configuration says.

    Attributes:
        path: The file.
        model: Its model.
        data: Its data.
    """

    path: Path
    model: Part
    data: Part


def find_cli_run(place: Path) -> CliRun | None:
    """Return what LightningCLI wrote down about the run that a place belongs to.

    Args:
        place: The run's folder, its ``checkpoints`` folder, or a checkpoint in there.

    Returns:
        The run, or None where there is no such file.

    Raises:
        InputError: If the file cannot be read.
    """
    whole = place.absolute()
    for folder in (whole, *whole.parents[:2]):
        path = folder / _CONFIG
        if path.is_file() and (config := _read(path)) is not None:
            path = Path(os.path.relpath(path))
            parts = {kind: _part(config, kind, path) for kind in _KINDS}
            return CliRun(path=path, model=parts["model"], data=parts["data"])
    return None


def _read(path: Path) -> dict[str, Any] | None:
    import yaml  # type: ignore[import-untyped]

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # a broken file can fail in any way
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}), so it does not say which classes "
            "were trained. Name them with --model and --data."
        ) from error
    # Other tools write a config.yaml, too.
    ours = isinstance(found, dict) and isinstance(found.get("model"), dict) and "trainer" in found
    return found if ours else None


def _part(config: Mapping[str, Any], kind: Any, path: Path) -> Part:
    found = config.get(kind)
    if not isinstance(found, Mapping):
        return Part(kind=kind, name=None, path=path)
    name = found.get("class_path")
    if not isinstance(name, str):
        return Part(kind=kind, name=None, arguments=dict(found), path=path)
    return Part(kind=kind, name=name, arguments=dict(found.get("init_args") or {}), path=path)


def built_arguments(part: Part) -> dict[str, Any]:
    """Return the arguments of a model or of data, with the modules among them built.

    Args:
        part: As the file has it; where it names a class, that is looked at, too.

    Returns:
        Values by name.

    Raises:
        InputError: If it names what is no class of its kind, or builds anything but modules.
    """
    if part.name is not None:
        _class(part.name, _KINDS[part.kind], part)
    return {name: _built(value, part) for name, value in part.arguments.items()}


def _built(value: Any, part: Part) -> Any:
    if isinstance(value, list):
        return [_built(item, part) for item in value]
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("class_path"), str):
        return {name: _built(item, part) for name, item in value.items()}
    made = _class(value["class_path"], "Module", part)
    arguments = {name: _built(item, part) for name, item in (value.get("init_args") or {}).items()}
    return made(**arguments)


def _class(name: str, base: str, part: Part) -> Any:
    from ntkwatch.integrations.arguments import named_object

    found = named_object(name)
    known = isinstance(found, type) and base in {ancestor.__name__ for ancestor in found.__mro__}
    if not known:
        raise InputError(
            f"{part.path} names {name}, which is no {base}, and nothing else is made on a file's "
            f"word. Write a function that returns the {part.kind}, and name it with --{part.kind}."
        )
    return found
