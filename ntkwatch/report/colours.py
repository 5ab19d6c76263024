"""The colours of every plot and page.

Nothing here knows what is drawn.
"""

from collections.abc import Sequence

from ntkwatch.watch.verdict.verdict import Strength

__all__ = ["COLOURS", "DASHES", "GREY", "STRENGTH_COLOURS", "faded", "run_colours"]

GREY = "#77818c"
# Middle tones: each reads on white and on near-black, so one page serves light, dark and print.
STRENGTH_COLOURS = {
    Strength.STATIC: GREY,
    Strength.LAZY: "#2f7fc1",
    Strength.TRANSITIONAL: "#a8761a",
    Strength.FEATURE_LEARNING: "#d1571b",
    Strength.UNDETERMINED: GREY,
}
# None of the above, so that no curve looks like a verdict. Dashes tell repeats apart.
COLOURS = (
    "#12906f",
    "#b056a8",
    "#5f7fd8",
    "#c64a6c",
    "#5b8c2a",
    "#0e87a0",
    "#8a6fd0",
    "#9a6a4f",
)
DASHES = ("solid", "dash", "dot", "dashdot")


def run_colours(strengths: Sequence[Strength]) -> list[str]:
    """Return a colour for each of several runs.

    Args:
        strengths: Of the runs' verdicts.

    Returns:
        The colours of the strengths where they tell the runs apart, else those of curves.
    """
    own = [STRENGTH_COLOURS[strength] for strength in strengths]
    if len(set(own)) == len(own):
        return own
    return [COLOURS[place % len(COLOURS)] for place in range(len(own))]


def faded(colour: str, share: float) -> str:
    """Return a colour that lets the background through.

    Args:
        colour: A hash and six hexadecimal digits.
        share: How much of the colour remains, in [0, 1].

    Returns:
        The colour as CSS and plotly read it.
    """
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"
