"""``ntkwatch check``: can a model be watched, how, and at what cost."""

from pathlib import Path

import click

from ntkwatch.commands.output import chosen_form, output_options, wants_colour, width, write_page
from ntkwatch.commands.progress import progress
from ntkwatch.commands.sources import (
    check_data_named,
    kernel_settings,
    made_model,
    made_probe,
    source_options,
)

__all__ = ["check"]


@click.command(short_help="Say before training whether a model can be watched.")
@click.argument("model")
@source_options
@output_options(("text", "json"))
def check(
    model: str,
    arguments: tuple[str, ...],
    data: str | None,
    probe_file: str | None,
    probe_size: int,
    outputs: str,
    params: tuple[str, ...],
    engine: str,
    memory_budget: str,
    device: str,
    form: str | None,
    as_json: bool,
    output: Path | None,
    no_color: bool,
) -> None:
    """Say before training whether MODEL can be watched: how, and at what cost.

    MODEL is pkg.mod:Name of a module class, or of a function that returns a model. It is observed
    at several probe sizes up to --probe-size, as training would be: which route each parameter's
    part of the kernel takes, whether samples depend on each other, and the time and memory of an
    observation. Where the data has targets, the regime of a training on the probe is foretold, too.

    \b
    Examples:
      ntkwatch check pkg.mod:Net --data pkg.mod:Data
      ntkwatch check pkg.mod:Net --set width=512 --data pkg.mod:batch --probe-size 256 --json
    """
    form = chosen_form(form, as_json=as_json)
    check_data_named(data, probe_file)
    from ntkwatch.watch.before_training.examine import examine, sizes_up_to

    net = made_model(model, {}, arguments, device)
    probe = made_probe(data, probe_file, net, probe_size)
    sizes = len(sizes_up_to(len(probe)))
    with progress("Observing at several probe sizes", sizes) as advance:
        settings = kernel_settings(outputs, params, engine, memory_budget)
        checkup = examine(net, probe, on_size=lambda size: advance(), **settings)
    if form == "json":
        from ntkwatch.report.checkup_json import render_checkup_json

        write_page(render_checkup_json(checkup), output)
        return
    from ntkwatch.report.checkup_text import render_checkup_text

    colour = wants_colour(output, no_color=no_color)
    write_page(render_checkup_text(checkup, colour=colour, width=width()), output)
