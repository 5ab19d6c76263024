"""Writes ``docs/commands.md`` from the command line's own code: ``python docs/make_commands.py``.

A test fails where the page is no longer what this writes.
"""

import inspect
import re
from pathlib import Path

import click

from ntkwatch.cli import cli
from ntkwatch.report import checkup_json, comparison_json, json_report

PAGE = Path(__file__).with_name("commands.md")

# What the commands print with --json: version key, its number, and every key with its meaning.
FORMS = {
    "report": (
        "ntkwatch_report",
        json_report.FORMAT,
        {
            "title": "name of the run",
            "verdict": "as in `verdict.json`, with its `label`",
            "run": "what all observations share: first line of `history.jsonl`",
            "observations": "one object each, as in `history.jsonl` ([keys](metrics.md))",
            "gaps": "steps without an observation: `step`, `reason`, `kind` (failed or diverged)",
            "missing": "numbers that were not measured: `numbers`, `reason`, `where`",
            "problems": "what was wrong with the history file",
            "cost": "`observations`, `brief` (how many of them), `seconds` (theirs), "
            "`slowest_seconds`; at the end of a run also `watching_seconds` (all of watching), "
            "`elapsed_seconds` (the training with it), `share`, `promised` (most that was "
            "allowed; null: no limit), else null",
        },
    ),
    "compare": (
        "ntkwatch_comparison",
        comparison_json.FORMAT,
        {
            "title": "heading",
            "runs": "`name`, `verdict`, `last` observation, number of `observations`, `problems`",
            "matching": "`clock`, `levels` (each a `level` and, per run, `step`, `loss` and "
            "`values` there; null where the loss more than halved between the observations "
            "around), `order` (positions from the laziest on), `said`, `why_not`",
            "caution": "what to know before comparing",
        },
    ),
    "check": (
        "ntkwatch_checkup",
        checkup_json.FORMAT,
        {
            "model": "its class",
            "spec": "settings of its kernel",
            "probe": "fingerprint, size, origin and class counts",
            "elements": "numbers in each watched parameter",
            "routes": "per parameter: `structured`, `generic`, `vmap` or `loop`",
            "no_kernel": "why samples have no kernel of their own, or null",
            "plan": "per parameter, what the structured engine does",
            "forecast": "of a training on the probe: `strength`, `points` (per `loss_ratio`, how "
            "far the network moves), `left_out`, `samples`, `outputs`; empty where there is none",
            "no_forecast": "why there is none, or null",
            "costs": "per probe size: `reference_seconds`, `seconds`, `peak_bytes` (null: unknown)",
            "notes": "what a reader of its numbers should know",
            "suggestions": "what to do, in sentences",
            "settings": "the same as arguments of `NTKMonitor`",
        },
    ),
}


def page() -> str:
    """Return the page."""
    parts = [
        "# Commands",
        "Written from the code by `python docs/make_commands.py`; `ntkwatch COMMAND --help` (or "
        "`-h`) says the same.",
        "Results go to standard output (or to `-o FILE`), messages and progress to standard error.",
        _table(
            ("exit code", "meaning"),
            [
                ("0", "fine"),
                ("1", "error: one line says what was seen, why that stops us and what to do"),
                ("2", "wrong usage"),
                ("3", "`--fail-on` matched"),
                ("130", "interrupted; files written until then are whole"),
            ],
        ),
    ]
    for name in sorted(cli.commands):
        parts += _command(name, cli.commands[name])
    parts += [
        "## JSON",
        "No NaN or infinity (null instead); nothing is rounded. A form's number is "
        "raised whenever a reader of the older one would misread the newer one.",
    ]
    for name, (key, number, keys) in FORMS.items():
        rows = [(f"`{key}`", f"version of this form: {number}")]
        rows += [(f"`{word}`", meaning) for word, meaning in keys.items()]
        parts += [f"`ntkwatch {name} --json`:", _table(("key", "value"), rows)]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: click.Command) -> list[str]:
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    context = click.Context(command, info_name=f"ntkwatch {name}")
    shown = "\n".join(f"$ {line.strip()}" for line in examples.strip().splitlines())
    prose = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    rows = [
        (_names(option), _help(option))
        for option in command.params
        if isinstance(option, click.Option)
    ]
    return [
        f"## ntkwatch {name}",
        *map(_escaped, prose),
        f"```console\n{shown}\n```",
        f"`{' '.join([f'ntkwatch {name}', *command.collect_usage_pieces(context)])}`",
        _table(("option", "meaning"), rows),
    ]


def _names(option: click.Option) -> str:
    words = ", ".join(f"`{name}`" for name in option.opts)
    if isinstance(option.type, click.Choice):
        return f"{words} {', '.join(map(str, option.type.choices))}"
    if option.is_flag:
        return words
    return f"{words} {option.metavar or option.type.name.upper().split()[0]}"


def _help(option: click.Option) -> str:
    default = f" Default: {option.default}." if option.show_default else ""
    return _escaped(f"{option.help or ''}{default}")


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<>])", r"\\\1", text)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
