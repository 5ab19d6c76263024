"""Writes ``docs/zoo.md`` from the zoo of the tests: ``python docs/make_zoo.py`` (about a minute).

A test fails where the page no longer says what is found.
"""

import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]

from zoo.entry import COUNT, Entry  # noqa: E402 - found by the line above
from zoo.every import ZOO  # noqa: E402
from zoo.measure import EXACT, SINGLE, Found, measure  # noqa: E402

PAGE = Path(__file__).with_name("zoo.md")
HEAD = ("model", "parameters by route", "float32 inside", "error", "seconds")
_OPENING = """# The zoo

Written by `python docs/make_zoo.py` from the models in `tests/zoo`, which the slow tests hold
against plain autograd. Each is tiny, with random weights and {count} samples, in float64; "padded"
means that an attention mask marks padding. The oracle is `torch.autograd.grad` on a copy, sample by
sample, without code of this package.

- **parameters by route**: how many parameters the structured engine serves by rule (*structured*),
  by calling an operation that has no rule sample by sample (*generic*: right, and slower; the
  operation is named), or leaves to another engine (*vmap*, *loop*). What has no kernel is refused,
  with what is said.
- **float32 inside**: some models of transformers compute norms, softmaxes or scans in float32
  whatever their dtype. Their error may be {single:.0e}, that of all others {exact:.0e}.
- **error**: the largest relative one, of the kernel or of a layer's part of it. **seconds**: a
  first call of `empirical_ntk` with all its checks, on one shared processor core.

torch {torch}, transformers {transformers}: {models} models and layers, {kernels} with a kernel
({served} served by rule alone), {refused} refused.
"""


def table(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return the rows of some entries."""
    return [_row(entry, measure(entry)) for entry in entries]


def rows_of(page: str, domain: str) -> list[list[str]]:
    """Return the rows that a page has under a heading."""
    _, _, rest = page.partition(f"\n## {domain}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def _row(entry: Entry, found: Found) -> tuple[str, ...]:
    if found.refused:
        return entry.title, f"refused: {_said(found.refused)}", "", "", ""
    routes = ", ".join(f"{route} {count}" for route, count in found.routes.items())
    if found.called:
        routes += f" ({', '.join(name.removesuffix('Backward0') for name in found.called)})"
    single = "yes" if found.single else ""
    return entry.title, routes, single, f"{found.error:.0e}", f"{found.seconds:.2f}"


def _said(refusal: str) -> str:
    """The part of a refusal that no rounding changes: up to its first number or bracket."""
    words = re.split(r"[:,(]? (?:on \d|with another|two forward|\(a |\(\w*Error)", refusal)[0]
    words = words.partition(": ")[2].partition(", so ")[0]
    return re.sub(r"^\d+ of the \d+ ", "", words.strip())


def _page() -> str:
    found = [measure(entry) for some in ZOO.values() for entry in some]
    opening = _OPENING.format(
        count=COUNT,
        single=SINGLE,
        exact=EXACT,
        torch=version("torch").partition("+")[0],
        transformers=version("transformers"),
        models=len(found),
        kernels=sum(not each.refused for each in found),
        served=sum(set(each.routes) == {"structured"} for each in found),
        refused=sum(bool(each.refused) for each in found),
    )
    parts = [opening]
    for domain, entries in ZOO.items():
        lines = [HEAD, ("---", "---", "---", "---:", "---:"), *table(entries)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {domain}\n\n{body}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(_page(), encoding="utf-8")
