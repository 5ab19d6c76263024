"""``ntkwatch report``: of a watched run, or of the checkpoints of one that was not watched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ntkwatch.commands.measuring import configured_run, measured, recorded
from ntkwatch.commands.output import chosen_form, output_options, wants_colour, width, write_page
from ntkwatch.commands.sources import source_options
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import Strength, Verdict, judge

__all__ = ["GATE", "report"]

GATE = 3  # --fail-on matched; click keeps 1 for errors and 2 for usage

# What means something without --model; all else is about checkpoints.
_OF_ANY_RUN = ("places", "form", "as_json", "output", "no_color", "fail_on", "model")


@click.command(short_help="Report what was recorded about a run, or what its checkpoints say.")
@click.argument("places", metavar="RUN|CHECKPOINTS...", nargs=-1, type=click.Path(path_type=Path))
@output_options(("text", "html", "markdown", "json"))
@click.option(
    "--fail-on",
    type=click.Choice([str(strength) for strength in Strength]),
    multiple=True,
    help="Exit with 3 if the verdict is this strength; may be given several times.",
)
@click.option(
    "--model",
    default=None,
    metavar="NAME",
    help="Measure checkpoints: pkg.mod:Name of the class that was trained, or of a function that "
    "returns the model.",
)
@source_options
@click.option(
    "--batchnorm",
    type=click.Choice(["probe", "running", "reference", "batch"]),
    default="probe",
    show_default=True,
    help="Statistics of BatchNorms in the kernel.",
)
@click.option(
    "--weights",
    type=click.Choice(["raw", "averaged"]),
    default="raw",
    show_default=True,
    help="Which weights to read from checkpoints that hold a running average too.",
)
@click.option(
    "--strip-prefix",
    "prefix",
    default=None,
    metavar="PREFIX",
    help='What stands before the model\'s names in checkpoints, such as "student."; found by '
    "itself where there is one way only.",
)
@click.option(
    "--loss",
    default=None,
    metavar="NAME",
    help="Loss to take on the probe, as pkg.mod:name of a function of outputs and targets, such "
    "as torch.nn.functional:cross_entropy. Runs are compared by it.",
)
@click.option(
    "--held-out",
    default=None,
    metavar="NAME",
    help="Samples that were not trained on, to say whether the features were needed: val for the "
    "validation data of --data, or pkg.mod:Name as there. The probe is then the whole training set "
    "of --data (samples times outputs up to 4000).",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for what is measured; ntk/ beside the checkpoints, unless told otherwise.",
)
@click.option(
    "--first-is-start",
    is_flag=True,
    help="The earliest checkpoint holds the weights from before training. Without this, only one "
    "of step 0 does, and no other reference gets a verdict.",
)
@click.option(
    "--trust-checkpoint",
    "trust",
    is_flag=True,
    help="Let code in the checkpoints run. Only for files from people you trust.",
)
@click.pass_context
def report(
    ctx: click.Context,
    /,
    places: tuple[Path, ...],
    form: str | None,
    as_json: bool,
    output: Path | None,
    no_color: bool,
    fail_on: tuple[str, ...],
    model: str | None,
    **settings: Any,
) -> None:
    """Report what was recorded about a RUN: was training lazy or feature-learning?

    RUN is the folder that the training logged to, such as lightning_logs/version_0, or the
    history.jsonl in it.

    With --model, report on CHECKPOINTS of a training that nobody watched: a folder of them, or
    files. They are Lightning's .ckpt, state dicts (.pt, .pth), .safetensors, Hugging Face's
    checkpoint-*/ folders or those of torch.distributed.checkpoint, and are ordered by the step
    that they hold. What was measured is kept in ntk/ beside them; a second report measures only
    what is new. With --probe of a watched run, its checkpoints are compared with the reference
    that lies beside the probe; else with the earliest checkpoint. The folder of a LightningCLI run
    names model and data itself.

    \b
    Examples:
      ntkwatch report lightning_logs/version_0
      ntkwatch report lightning_logs/version_0 --format html -o report.html
      ntkwatch report lightning_logs/version_0 --fail-on lazy
      ntkwatch report checkpoints/ --model pkg.mod:Net --data pkg.mod:Data
      ntkwatch report checkpoints/ --model pkg.mod:Net --data pkg.mod:Data --held-out val
    """
    form = chosen_form(form, as_json=as_json)
    cli = configured_run(places, model)
    if model is None and cli is None:
        _check_usage(ctx, places)
        history, title = recorded(places[0]), str(places[0])
    else:
        if not places:
            raise click.UsageError("name the checkpoints: their folder, or the files.")
        history, title = measured(places, model, cli, **settings)
    verdict = judge(history)
    render = _renderer(form, colour=wants_colour(output, no_color=no_color))
    write_page(render(history, verdict, title=title), output)
    if verdict.strength in fail_on:
        ctx.exit(GATE)


def _check_usage(ctx: click.Context, places: tuple[Path, ...]) -> None:
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name is not None
        and parameter.name not in _OF_ANY_RUN
        and ctx.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(f"{given[0]} is about checkpoints, which need --model too.")
    if not places:
        raise click.UsageError("name the folder of a run, such as lightning_logs/version_0.")
    if len(places) > 1:
        raise click.UsageError(
            f"a report is about one run, and {len(places)} were named. "
            "To see several side by side: ntkwatch compare."
        )


def _renderer(form: str, *, colour: bool) -> Callable[..., str]:
    """Import what one form needs: the page's libraries take longer than all the rest."""
    if form == "html":
        from ntkwatch.report.html import render_html
        from ntkwatch.report.kept_kernels import read_kernel_pair

        def render_page(history: History, verdict: Verdict, *, title: str) -> str:
            folder = None if history.path is None else history.path.parent
            kernels = read_kernel_pair(folder, history)
            return render_html(history, verdict, title=title, kernels=kernels)

        return render_page
    if form == "markdown":
        from ntkwatch.report.markdown import render_markdown

        return render_markdown
    if form == "json":
        from ntkwatch.report.json_report import render_json

        return render_json
    from ntkwatch.report.text import render_text

    def render(history: History, verdict: Verdict, *, title: str) -> str:
        return render_text(history, verdict, title=title, colour=colour, width=width())

    return render
