"""Text of unknown length and script, cut and wrapped to a width on paper. Sizes are in points, widths in inches."""

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

_ELLIPSIS = "…"


def wrapped(text: str, *, width: float, size: float, max_lines: int) -> list[str]:
    """At most `max_lines` lines; words that are longer than a line are cut. What does not fit becomes an ellipsis."""
    lines = [""]
    for word in _one_line(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if _width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(cut(word, width=width, size=size))
    lines = [line for line in lines if line]
    if len(lines) > max_lines:
        # With the next line's words it is too long, and ends in an ellipsis.
        lines = [*lines[: max_lines - 1], cut(" ".join(lines[max_lines - 1 : max_lines + 1]), width=width, size=size)]
    return lines


def cut(text: str, *, width: float, size: float) -> str:
    """The text on one line, ending in an ellipsis where it is too long."""
    text = _one_line(text)
    if _width(text, size) <= width:
        return text
    while text and _width(text + _ELLIPSIS, size) > width:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS


def _one_line(text: str) -> str:
    """Control characters, which some renderers obey, become spaces."""
    return "".join(c if c.isprintable() else " " for c in text)


def _width(text: str, size: float) -> float:
    # Character by character: kerning only makes it less.
    return sum(map(_em, text)) * size / 72


@lru_cache(maxsize=4096)
def _em(character: str) -> float:
    """A character's width over its font's size."""
    font = FontProperties(size=100)
    # The first of two, since a space at an end would count for nothing.
    width, _, _ = text_to_path.get_text_width_height_descent(character + "|", font, ismath=False)
    return (width - _bar()) / 100


@lru_cache(maxsize=1)
def _bar() -> float:
    return text_to_path.get_text_width_height_descent("|", FontProperties(size=100), ismath=False)[0]
