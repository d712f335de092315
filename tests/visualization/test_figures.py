"""The pictures: nothing overlaps or leaves the paper, for few and many of everything, and they show the numbers."""

import itertools
from functools import cache

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from linvt.visualization.figures import DPI, _outline, frames_figure, heat_image, save_png, time_figure, tokens_figure
from linvt.visualization.view import shown_frames
from tests.visualization.views import make_view

LONG = "in which of the many shots , if there are several that look alike , does the $green$ star_ move ? " * 12
CASES = {
    "16 frames, 4 shots": {},
    "one shot": {"num_shots": 1},
    "64 frames, 40 shots": {"num_frames": 64, "num_shots": 40, "left_out": True},
    "300 frames": {"num_frames": 300, "num_shots": 9},
    "one frame": {"num_frames": 1, "num_shots": 1},
    "five frames": {"num_frames": 5, "num_shots": 2},
    "long texts": {"question": LONG, "answer": LONG, "video": "x" * 300, "model": "m" * 300, "num_answer_tokens": 90},
    "wide letters": {
        "question": "W" * 400,
        "answer": "mW " * 300,
        "answer_tokens": ("W" * 50, "m" * 9, "$"),
        "video": "W" * 99,
    },
    "portrait": {"size": (320, 180)},
    "panorama": {"size": (60, 240), "grid": (4, 16)},
    "no pictures": {"size": None},
    "unordered tokens": {"grid": None},
    "neither": {"grid": None, "size": None},
    "nothing but spaces": {"question": " \n\t ", "answer": "\x00"},
    "no answer": {"answer": "", "num_answer_tokens": 1},
}


@cache
def figures_of(case: str) -> dict[str, Figure]:
    view = make_view(**{"num_answer_tokens": 3} | CASES[case])
    return {"frames": frames_figure(view), "time": time_figure(view), "tokens": tokens_figure(view)}


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_another_or_leaves_the_page(case: str, monkeypatch) -> None:
    drawn: list[Text] = []
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer)))
    for name, figure in figures_of(case).items():
        drawn.clear()
        figure.set_dpi(100)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        width, height = figure.canvas.get_width_height()
        boxes = {t: t.get_window_extent(renderer) for t in drawn if t.get_visible() and t.get_text().strip()}
        assert len(boxes) > 3
        for text, box in boxes.items():
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert inside, f"{name}: {text.get_text()!r} leaves the page: {box}"
        for (one, box), (other, box_) in itertools.combinations(boxes.items(), 2):
            across = min(box.x1, box_.x1) - max(box.x0, box_.x0)
            down = min(box.y1, box_.y1) - max(box.y0, box_.y0)
            # Boxes have room for accents and descenders, of which neighbouring lines may share a little.
            overlap = across > 1 and down > 0.3 * min(box.height, box_.height)
            assert not overlap, f"{name}: {one.get_text()!r} and {other.get_text()!r} overlap"


@pytest.mark.parametrize("case", CASES)
def test_panels_do_not_overlap_the_header_or_each_other(case: str) -> None:
    for name, figure in figures_of(case).items():
        boxes = [axes.get_position() for axes in figure.axes]
        for box in boxes:
            assert 0 <= box.x0 < box.x1 <= 1.0001, name
            assert 0 <= box.y0 < box.y1 <= 1.0001, name
        big = [box for box in boxes if box.height * figure.get_size_inches()[1] > 0.1]
        for one, other in itertools.combinations(big, 2):
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            down = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(across, down) <= 1e-6, f"{name}: {one} and {other}"


def test_the_file_is_a_png_for_print(tmp_path) -> None:
    save_png(frames_figure(make_view()), tmp_path / "frames.png")
    with Image.open(tmp_path / "frames.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 7 * DPI == 2100
    assert [file.name for file in tmp_path.iterdir()] == ["frames.png"]


def test_outlines_are_the_border_of_the_marked_patches() -> None:
    marked = np.zeros((3, 4), bool)
    marked[1, 1] = marked[1, 2] = True
    segments = {tuple(sorted(segment)) for segment in _outline(marked)}
    third = 1 / 3
    assert len(segments) == 6, "two patches side by side share no line"
    assert ((0.25, third), (0.5, third)) in segments
    assert ((0.25, third), (0.25, 2 * third)) in segments
    assert not any(x1 == x2 == 0.5 for (x1, _), (x2, _) in segments)


def test_the_heat_lies_where_the_weight_is() -> None:
    weights = np.zeros((2, 36))
    weights[0, 7], weights[1, 30] = 0.75, 0.25
    view = make_view(num_frames=2, num_shots=1, weights=weights, size=(60, 60))
    from matplotlib.colors import Normalize

    norm = Normalize(0, weights.max() * weights.size)
    images = [heat_image(view, i, norm) for i in range(2)]
    colourful = [np.ptp(image, axis=-1) > 0.1 for image in images]
    for i, (row, column) in enumerate([(1, 1), (5, 0)]):
        inside = np.zeros((60, 60), bool)
        inside[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10] = True
        assert np.array_equal(colourful[i], inside)
    assert images[0][15, 15].mean() < images[1][55, 5].mean(), "heavier is darker, also in grey"


def test_marked_patches_are_the_fewest_with_half_of_the_weight() -> None:
    view = make_view()
    marked = view.marked
    assert view.weights[marked].sum() >= 0.5
    assert view.weights[marked].sum() - view.weights[marked].min() < 0.5
    assert view.weights[marked].min() >= view.weights[~marked].max()


def test_of_many_frames_the_heaviest_of_each_stretch_are_shown() -> None:
    weights = np.arange(64) % 8 / 100
    assert shown_frames(weights, 8) == list(range(7, 64, 8))
    assert shown_frames(weights, 64) == list(range(64))
    assert len(set(shown_frames(weights, 30))) == 30


def test_the_curve_and_the_shots_are_the_weights() -> None:
    view = make_view(num_frames=20, num_shots=3)
    figure = time_figure(view)
    (curve,) = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 20]
    assert np.allclose(curve.get_xdata(), view.timestamps_s)
    assert np.allclose(curve.get_ydata(), 100 * view.weights.sum(-1))
    heights = [patch.get_height() for patch in figure.axes[-1].patches]
    assert np.allclose(heights, 100 * view.shot_weights)
    assert sum(heights) == pytest.approx(100)
    boundaries = {float(line.get_xdata()[0]) for line in figure.axes[-1].lines if len(set(line.get_xdata())) == 1}
    assert boundaries == set(view.shots_s[1:, 0])
    assert not any(isinstance(c, LineCollection) and len(c.get_segments()) > 1 for c in figure.axes[-1].collections)
