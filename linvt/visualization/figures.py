"""The paper's Figures 4 and 5 for one answer: frames with the patches that count, and weights over time.

For print: lengths are in inches, text is 6 points or more at the width of a page, and every colour difference is one of
lightness too, so that neither a colour-blind reader nor a grey printer loses anything.

Shape legend: T frames, N tokens a frame, H×W pixels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from linvt.visualization.typesetting import cut, wrapped
from linvt.visualization.view import MARKED_SHARE, EvidenceView, shown_frames

WIDTH = 7.0
DPI = 300
MARGIN = 0.08
LINE = 0.15
"""Height of a line of text."""
HEADER_SIZE = 7.5
MAX_TOKEN_ROWS = 40
FILM_PICTURES = 10

HEAT = colormaps["YlOrBr"]
INK, GREY, PALE = "#202020", "#6e6e6e", "#e9eef2"
BLUE, ORANGE = "#0072B2", "#E69F00"


def save_png(figure: Figure, path: Path) -> None:
    """Writes the whole file or none of it."""
    unfinished = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure).print_png(str(unfinished))
    os.replace(unfinished, path)


def frames_figure(view: EvidenceView, *, max_pictures: int = 16) -> Figure:
    """Figure 4: frames in time, the heaviest patches outlined, and below each its heat map and its weight."""
    shown = shown_frames(view.frame_weights, max_pictures)
    columns = min(len(shown), 8) if len(shown) > 5 else max(len(shown), 3)
    rows = -(-len(shown) // columns)
    gap, aspect = 0.06, _aspect(view)
    # Portrait frames would make cells taller than wide by a factor: the width is what gives.
    width = min((WIDTH - 2 * MARGIN - (columns - 1) * gap) / columns, 1.6 / aspect)
    height = width * aspect
    panels = (view.pictures is not None) + (view.grid is not None)
    cell = LINE + panels * (height + 0.03) + LINE + 0.1
    head = _header_lines(view)
    key = 0.62 if view.grid is not None else 2 * LINE
    figure = Figure(figsize=(WIDTH, len(head) * LINE + 0.16 + rows * cell + key), dpi=DPI)
    page = _Page(figure)
    page.header(head)
    top = len(head) * LINE + 0.16
    norm = PowerNorm(0.5, 0, max(float(view.weights.max()), 1e-12) * view.weights.size)
    marked, frame_weights = view.marked, view.frame_weights
    for place, i in enumerate(shown):
        left = MARGIN + (place % columns) * (width + gap)
        y = top + (place // columns) * cell
        page.text(left, y + LINE / 2, f"{view.timestamps_s[i]:.1f} s", size=6.5, weight="bold")
        if len(view.shots_s) > 1 and width > 0.55:
            page.text(left + width, y + LINE / 2, f"shot {view.shot_index[i] + 1}", size=6, color=GREY, ha="right")
        y += LINE
        if view.pictures is not None:
            axes = page.axes(left, y, width, height)
            _draw_picture(axes, view, i, marked[i])
            y += height + 0.03
        if view.grid is not None:
            axes = page.axes(left, y, width, height)
            _fill(axes, heat_image(view, i, norm))
            if view.pictures is None:
                _mark(axes, marked[i].reshape(view.grid))
            y += height + 0.03
        share = frame_weights[i] / max(frame_weights.max(), 1e-12)
        page.box(left, y + 0.02, width, 0.035, PALE)
        page.box(left, y + 0.02, width * share, 0.035, BLUE)
        page.text(left, y + 0.055 + LINE / 2, _percent(frame_weights[i]), size=6.5)
    _frames_key(page, view, None if view.grid is None else norm, len(shown), top + rows * cell)
    return figure


def time_figure(view: EvidenceView) -> Figure:
    """Figure 5: the weight of each frame over time with the shots' boundaries, and the weight of each shot."""
    head = _header_lines(view)
    left, right = 0.62, 0.12
    inner = WIDTH - left - right
    film = 0.0
    if view.pictures is not None:
        film = min(inner / FILM_PICTURES * 0.96 * _aspect(view), 0.75)
    has_shots = len(view.shots_s) > 1
    key, curve, shots = 0.2, 1.55, (0.9 if has_shots else 0.0)
    top = len(head) * LINE + 0.16
    figure = Figure(figsize=(WIDTH, top + film + key + curve + shots + 0.42), dpi=DPI)
    page = _Page(figure)
    page.header(head)
    if view.pictures is not None:
        _film(page, view, left, top, inner, film)
    top += film
    page.text(WIDTH - right, top + key / 2, "- - -  an even share", size=6, color=GREY, ha="right")
    axes = page.axes(left, top + key, inner, curve, frame=True)
    _draw_curve(axes, view)
    lowest = axes
    if has_shots:
        lowest = page.axes(left, top + key + curve + 0.14, inner, shots - 0.14, frame=True)
        _draw_shots(lowest, view, inner)
        axes.set_xticklabels([])
    lowest.set_xlabel("time (s)", fontsize=7)
    return figure


def tokens_figure(view: EvidenceView) -> Figure:
    """The weight of each frame in each token of the answer: a row a token, time to the right."""
    assert view.token_weights is not None
    shown = view.answer_tokens[:MAX_TOKEN_ROWS]
    head = _header_lines(view)
    if len(shown) < len(view.answer_tokens):
        head.append((f"The first {len(shown)} of {len(view.answer_tokens)} answer tokens.", GREY))
    row, left, right = 0.19, 1.15, 0.75
    top = len(head) * LINE + 0.26
    height = row * max(len(shown), 2)
    figure = Figure(figsize=(WIDTH, top + height + 0.42), dpi=DPI)
    page = _Page(figure)
    page.header(head)
    axes = page.axes(left, top, WIDTH - left - right, height, frame=True)
    percent = 100 * view.token_weights[: len(shown)].sum(-1)
    mesh = axes.pcolormesh(
        _edges_s(view), np.arange(len(shown) + 1), percent, cmap=HEAT, norm=Normalize(0, percent.max())
    )
    axes.invert_yaxis()
    labels = [cut(text, width=left - 0.2, size=7) for text in shown]
    axes.set_yticks(np.arange(len(shown)) + 0.5, labels, fontsize=7, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.hlines(np.arange(1, len(shown)), 0, view.end_s, color="white", linewidth=0.8)
    _boundaries(axes, view)
    axes.set_xlim(0, view.end_s)
    axes.set_xlabel("time (s)", fontsize=7)
    bar = figure.colorbar(mesh, cax=page.axes(WIDTH - right + 0.1, top, 0.1, height, frame=True))
    page.text(WIDTH - right + 0.1, top - 0.1, "weight (%)", size=6, color=GREY)
    bar.ax.tick_params(labelsize=6)
    return figure


class _Page:
    """A figure in inches from its top left corner, so that what is placed can be seen not to overlap."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure
        self._width, self._height = map(float, figure.get_size_inches())

    def axes(self, left: float, top: float, width: float, height: float, *, frame: bool = False) -> Axes:
        rect = (left / self._width, 1 - (top + height) / self._height, width / self._width, height / self._height)
        axes = self._figure.add_axes(rect)
        if frame:
            axes.tick_params(labelsize=6.5, width=0.5, length=2.5, color=GREY)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            for spine in axes.spines.values():
                spine.set_linewidth(0.5)
        else:
            axes.set_axis_off()
        return axes

    def text(self, left: float, middle: float, text: str, **style: Any) -> None:
        # What a user or a model wrote is no formula, whatever dollars are in it.
        style = {"color": INK, "va": "center", "parse_math": False} | style
        self._figure.text(left / self._width, 1 - middle / self._height, text, **style)

    def box(self, left: float, top: float, width: float, height: float, color: str) -> None:
        axes = self.axes(left, top, max(width, 1e-6), height)
        axes.add_patch(_rectangle(0, 0, 1, 1, color))

    def header(self, lines: Sequence[tuple[str, str]]) -> None:
        for i, (line, color) in enumerate(lines):
            self.text(MARGIN, 0.06 + (i + 0.5) * LINE, line, size=HEADER_SIZE, color=color)


def _header_lines(view: EvidenceView) -> list[tuple[str, str]]:
    """(line, colour) of question, answer and where they come from."""

    def lines(text: str, max_lines: int) -> list[str]:
        return wrapped(text, width=WIDTH - 2 * MARGIN, size=HEADER_SIZE, max_lines=max_lines)

    facts = f"{_count(len(view.timestamps_s), 'frame')} · {_count(len(view.shots_s), 'shot')}"
    video, model = (cut(name, width=3.0, size=HEADER_SIZE) for name in (view.video, view.model))
    return [
        *((line, INK) for line in lines(f"Question: {view.question}", 5)),
        *((line, BLUE) for line in lines(f"Answer: {view.answer or '(nothing)'}", 3)),
        *((line, GREY) for line in lines(f"{video} · {facts} · model: {model}", 2)),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _percent(weight: float) -> str:
    return f"{100 * weight:.1f}%"


def _rectangle(x: float, y: float, width: float, height: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=color, edgecolor="none")


def _aspect(view: EvidenceView) -> float:
    """Height over width of a frame; without pictures, patches are taken for squares."""
    if view.pictures is not None:
        return view.pictures.shape[1] / view.pictures.shape[2]
    return view.grid[0] / view.grid[1] if view.grid else 0.1


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W] of a grid's values [rows, columns]: each patch a block."""
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    return values[rows][:, columns]


def _fill(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, extent=(0, 1, 1, 0), aspect="auto", interpolation="antialiased")
    axes.set(xlim=(-0.01, 1.01), ylim=(1.01, -0.01))


def _draw_picture(axes: Axes, view: EvidenceView, i: int, marked_N: np.ndarray) -> None:
    """The frame; patches that LinVT left out fade, the heaviest ones are outlined."""
    assert view.pictures is not None
    picture = view.pictures[i].astype(np.float32) / 255
    if view.grid is not None:
        held = _resized(view.held[i].reshape(view.grid), *picture.shape[:2])
        picture = np.where(held[..., None], picture, 0.25 * picture + 0.75)
    _fill(axes, picture)
    if view.grid is not None:
        _mark(axes, marked_N.reshape(view.grid))


def _mark(axes: Axes, marked: np.ndarray) -> None:
    """Outlines that show on light and on dark."""
    lines = _outline(marked)
    axes.add_collection(LineCollection(lines, colors="black", linewidths=1.7, capstyle="projecting"))
    axes.add_collection(LineCollection(lines, colors=ORANGE, linewidths=0.9, capstyle="projecting"))


def _outline(marked: np.ndarray) -> list[list[tuple[float, float]]]:
    """The border of the marked cells [rows, columns], as segments in the unit square, y downwards."""
    rows, columns = marked.shape
    padded = np.pad(marked, 1)
    across = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    down = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    vertical = [[(x / columns, y / rows), (x / columns, (y + 1) / rows)] for y, x in across]
    return vertical + [[(x / columns, y / rows), ((x + 1) / columns, y / rows)] for y, x in down]


def heat_image(view: EvidenceView, i: int, norm: Normalize) -> np.ndarray:
    """float [H, W, 3]: the frame in pale grey with the weight of each patch over it."""
    assert view.grid is not None
    weights = view.weights[i].reshape(view.grid) * view.weights.size
    if view.pictures is None:
        grey = np.full((view.grid[0] * 8, view.grid[1] * 8), 0.93)
    else:
        grey = np.asarray(Image.fromarray(view.pictures[i]).convert("L"), np.float32) / 255
        grey = 0.5 + 0.5 * grey
    # As pale as paper where nothing weighs: the eye is to follow the weights.
    strength = np.asarray(norm(_resized(weights, *grey.shape)))[..., None]
    opacity = 0.9 * np.sqrt(strength)
    return (1 - opacity) * grey[..., None] + opacity * _heat_colours(strength[..., 0])


def _frames_key(page: _Page, view: EvidenceView, norm: Normalize | None, num_shown: int, top: float) -> None:
    """What the colours mean, below the frames."""
    notes = ["Blue: the frame's weight in the answer."]
    if num_shown < len(view.timestamps_s):
        notes.append(f"Of {len(view.timestamps_s)} frames, the heaviest of each of {num_shown} equal stretches.")
    left = MARGIN
    if norm is not None:
        notes.insert(0, f"Outlined: the heaviest patches, which together have {MARKED_SHARE:.0%} of the weight.")
        if view.pictures is not None and not view.held.all():
            notes.insert(1, "Faded: patches that LinVT's refiner left out.")
        left = 2.25
        page.text(MARGIN + 0.02, top + 0.08, "weight of a patch (1 = an even share)", size=6, color=GREY)
        axes = page.axes(MARGIN + 0.02, top + 0.16, 1.7, 0.09, frame=True)
        values = np.linspace(0, norm.vmax or 1, 257)
        axes.pcolormesh(values, [0, 1], _heat_colours(np.asarray(norm(values[1:])))[None])
        axes.set_yticks([])
        axes.set_xlim(0, norm.vmax)
        axes.locator_params(axis="x", nbins=5)
    for i, note in enumerate(notes):
        page.text(left, top + 0.08 + i * 0.13, note, size=6, color=GREY)


def _heat_colours(strength: np.ndarray) -> np.ndarray:
    """[..., 3] for strengths in [0, 1]. The palest part of the map is left out: on grey it would look like nothing."""
    return HEAT(0.15 + 0.85 * strength)[..., :3]


def _film(page: _Page, view: EvidenceView, left: float, top: float, width: float, height: float) -> None:
    """Pictures over the time axis: in each tenth of it the heaviest frame."""
    assert view.pictures is not None
    slot = width / FILM_PICTURES
    picture_width = min(slot * 0.96, height / _aspect(view))
    tenth = np.minimum(view.timestamps_s / view.end_s * FILM_PICTURES, FILM_PICTURES - 1).astype(int)
    for place in range(FILM_PICTURES):
        inside = np.flatnonzero(tenth == place)
        if len(inside):
            i = inside[np.argmax(view.frame_weights[inside])]
            x = left + place * slot + (slot - picture_width) / 2
            _fill(page.axes(x, top, picture_width, height), view.pictures[i])


def _draw_curve(axes: Axes, view: EvidenceView) -> None:
    percent, even = 100 * view.frame_weights, 100 / len(view.timestamps_s)
    top = max(float(percent.max()), even) * 1.16
    _shade(axes, view)
    _boundaries(axes, view)
    axes.axhline(even, color=INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=2)
    many = len(percent) > 100
    axes.plot(
        view.timestamps_s, percent, color=BLUE, linewidth=0.9, marker=None if many else "o", markersize=2.6, zorder=4
    )
    axes.fill_between(view.timestamps_s, percent, color=BLUE, alpha=0.18, linewidth=0, zorder=3)
    axes.set(xlim=(0, view.end_s), ylim=(0, top))
    axes.set_ylabel("weight of a frame (%)", fontsize=7)
    axes.locator_params(axis="y", nbins=5)


def _draw_shots(axes: Axes, view: EvidenceView, inner: float) -> None:
    """A bar per shot over its time, beside what an even evidence would give it."""
    weights, even = 100 * view.shot_weights, 100 * view.shot_frames
    top = max(float(weights.max()), float(even.max())) * 1.4
    _boundaries(axes, view)
    for number, ((start, end), weight, expected) in enumerate(zip(view.shots_s, weights, even), 1):
        axes.add_patch(_rectangle(start, 0, end - start, weight, "#8fbfdc" if number % 2 else "#5f9fc6"))
        axes.hlines(expected, start, end, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        room = (end - start) / view.end_s * inner
        if room > 0.24:
            text = f"{number}: {weight:.0f}%" if room > 0.45 else str(number)
            axes.text((start + end) / 2, 0.99 * top, text, fontsize=6, ha="center", va="top")
    axes.set(xlim=(0, view.end_s), ylim=(0, top))
    axes.set_ylabel("of a shot (%)", fontsize=7)
    axes.locator_params(axis="y", nbins=3)


def _shade(axes: Axes, view: EvidenceView) -> None:
    for start, end in view.shots_s[1::2]:
        axes.axvspan(start, end, color=PALE, linewidth=0, zorder=0)


def _boundaries(axes: Axes, view: EvidenceView) -> None:
    for start, _ in view.shots_s[1:]:
        axes.axvline(start, color=GREY, linewidth=0.5, zorder=1)


def _edges_s(view: EvidenceView) -> np.ndarray:
    """[T + 1]: where the stretch that each frame stands for begins and ends."""
    middles = (view.timestamps_s[1:] + view.timestamps_s[:-1]) / 2
    return np.concatenate([[0.0], middles, [view.end_s]])
