"""The history behind a report: as it was recorded, or measured on checkpoints. Nothing is drawn."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ntkwatch.commands.progress import progress
from ntkwatch.commands.sources import (
    check_data_named,
    find_local_modules,
    kernel_settings,
    made_model,
    made_probe,
)
from ntkwatch.errors import CheckpointError, HistoryError, InputError
from ntkwatch.report.words import counted
from ntkwatch.watch.record.history import History, find_history, read_history

if TYPE_CHECKING:
    from ntkwatch.integrations.cli_run import CliRun

__all__ = ["configured_run", "measured", "recorded"]

_LEDGER = "checkpoints.json"  # beside a history that was measured on checkpoints
_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")  # of files that are no history for sure


def configured_run(places: tuple[Path, ...], model: str | None) -> "CliRun | None":
    """What LightningCLI wrote down, where the report is to be made of checkpoints."""
    if not places:
        return None
    if model is None:
        try:
            watched = _history_file(places[0])
        except HistoryError:
            pass
        else:
            # What an earlier report measured is gone over again, for what is new.
            if not (watched.parent / _LEDGER).is_file():
                return None
    from ntkwatch.integrations.cli_run import find_cli_run

    return find_cli_run(places[0])


def recorded(place: Path) -> History:
    """The history of a watched run; of checkpoints without one, say how they are measured."""
    try:
        return read_history(_history_file(place))
    except HistoryError as error:
        from ntkwatch.integrations.checkpoints.places import find_checkpoints

        try:
            found = find_checkpoints([place])
        except CheckpointError:
            found = []
        if not found or (found == [place] and place.suffix not in _SUFFIXES):
            raise
        folder = place.parent.parent if place.is_file() else place.parent
        beside = any(folder.glob("*/history.jsonl"))
        seen = f" (what was recorded beside: ntkwatch report {shlex.quote(str(folder))})"
        raise HistoryError(
            f"{place} holds {counted(len(found), 'checkpoint')} and no history"
            f"{seen if beside else ''}. To measure the checkpoints name what was trained, and on "
            f"what: ntkwatch report {shlex.quote(str(place))} --model pkg.mod:Class "
            "--data pkg.mod:DataModule"
        ) from error


def _history_file(place: Path) -> Path:
    if place.is_file() and place.suffix in _SUFFIXES:
        raise HistoryError(f"{place} is a checkpoint and no history.")
    return find_history(place)


def measured(
    places: tuple[Path, ...],
    model_name: str | None,
    cli: "CliRun | None",
    *,
    arguments: tuple[str, ...],
    data: str | None,
    probe_file: str | None,
    probe_size: int,
    outputs: str,
    params: tuple[str, ...],
    engine: str,
    memory_budget: str,
    device: str,
    batchnorm: str,
    weights: Any,
    prefix: str | None,
    loss: str | None,
    held_out: str | None,
    folder: Path | None,
    first_is_start: bool,
    trust: bool,
) -> tuple[History, str]:
    """The history of a series of checkpoints, and what to call it."""
    from ntkwatch.integrations.arguments import named_object
    from ntkwatch.integrations.checkpoints.places import find_checkpoints
    from ntkwatch.integrations.checkpoints.series import in_order
    from ntkwatch.integrations.checkpoints.watching import CheckpointReading, watch_checkpoints
    from ntkwatch.watch.store import RunFiles

    model_name, model_kept, data, data_kept = _named(cli, model_name, data, probe_file)
    files = find_checkpoints(places)
    series = in_order(files, trust=trust, weights=weights)
    for path, _, reason, is_broken in series.skipped:
        words = reason if is_broken else f"{path}: {reason}"
        click.echo(f"Left out: {words}", err=True)
    # What the configuration builds comes before what the checkpoints keep of it.
    model = made_model(model_name, series.hyper_parameters | model_kept, arguments, device)
    data_kept = series.data_hyper_parameters | data_kept
    tracker = {**kernel_settings(outputs, params, engine, memory_budget), "batchnorm": batchnorm}
    if held_out is None:
        probe = made_probe(data, probe_file, model, probe_size, data_kept)
    else:
        from ntkwatch.integrations.held_out_samples import training_set_and_held_out

        probe, others = training_set_and_held_out(data, held_out, model, kept=data_kept)
        tracker |= {"metrics": "full", "held_out": others}
    about: dict[str, Any] = {"model": model_name, "arguments": list(arguments), "outputs": outputs}
    about |= {"params": list(params), "batchnorm": batchnorm, "loss": loss}
    about |= {"engine": engine, "device": device}
    about |= {"held_out": None if held_out is None else others.fingerprint()}
    reading = CheckpointReading(
        trust=trust,
        weights=weights,
        prefix=prefix,
        first_is_start=first_is_start,
        loss=None if loss is None else named_object(loss),
        about=about,
    )
    target = _home(files) / "ntk" if folder is None else folder
    # Beside the probe lies the reference of the run that it was drawn for.
    beside = None if probe_file is None else RunFiles(Path(probe_file).parent)
    count = len(series.entries)
    with progress(f"Measuring {count} checkpoints", count) as advance:
        history, written = watch_checkpoints(
            model,
            probe,
            series,
            target,
            reading=reading,
            tracker_settings=tracker,
            watched=beside if beside is not None and beside.can_go_on else None,
            on_progress=lambda entry: advance(),
        )
    click.echo(f"Measurements are in {written.folder}", err=True)
    history.path = written.history  # beside it lie the kernels that a page shows
    return history, f"{model_name} in {places[0]}"


def _named(
    cli: "CliRun | None", model: str | None, data: str | None, probe_file: str | None
) -> tuple[str, dict[str, Any], str | None, dict[str, Any]]:
    """Model and data by name, with their arguments: as the user says, else as LightningCLI did."""
    if cli is None or (model is not None and (data or probe_file)):
        check_data_named(data, probe_file)
        assert model is not None
        return model, {}, data, {}
    from ntkwatch.integrations.cli_run import built_arguments

    find_local_modules()
    is_given = {"model": model is not None, "data": bool(data or probe_file)}
    parts = {part.kind: part for part in (cli.model, cli.data) if not is_given[part.kind]}
    if unnamed := [kind for kind, part in parts.items() if part.name is None]:
        flags = " and ".join(f"--{kind} pkg.mod:Class" for kind in unnamed)
        raise InputError(
            f"{cli.path} does not name the class of the {' and of the '.join(unnamed)}, which the "
            f"training's script did, so nothing can be built. Give {flags}."
        )
    kept = {kind: built_arguments(part) for kind, part in parts.items()}
    said = ", ".join(f"{kind} {part.name}" for kind, part in parts.items())
    click.echo(f"From {cli.path}: {said}", err=True)
    chosen = model or str(cli.model.name)
    chosen_data = str(cli.data.name) if "data" in parts else data
    return chosen, kept.get("model", {}), chosen_data, kept.get("data", {})


def _home(files: Sequence[Path]) -> Path:
    """The folder that most files are in; above them, where each has one of its own."""
    ((most, count),) = Counter(path.parent for path in files).most_common(1)
    return most if count > 1 or len(files) == 1 else most.parent
