"""The colours of every plot and page.

Nothing here knows what a colour stands for, strengths apart.
"""

from ntkwatch.watch.verdict import Strength

__all__ = ["COLOURS", "DASHES", "GREY", "STRENGTH_COLOURS", "faded"]

GREY = "#77818c"
# Middle tones: each reads on white and on near-black, so one page serves light, dark and print.
# Neighbours differ for colour-blind readers too; dashes tell repeats apart.
COLOURS = (
    "#2f7fc1",
    "#d1571b",
    "#12906f",
    "#b056a8",
    "#a8761a",
    "#5f7fd8",
    "#c64a6c",
    "#5b8c2a",
)
DASHES = ("solid", "dash", "dot", "dashdot")

STRENGTH_COLOURS = {
    Strength.STATIC: GREY,
    Strength.LAZY: "#2f7fc1",
    Strength.TRANSITIONAL: "#a8761a",
    Strength.FEATURE_LEARNING: "#d1571b",
    Strength.UNDETERMINED: GREY,
}


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
