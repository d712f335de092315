"""Rendered scenes: objects with colour, shape, size and position on a textured place. Pure and seeded.

Coordinates are fractions of the canvas, origin top left, so one scene renders at any size. Everything that a
question can be about is a field of `Scene`; everything that a question cannot be about (texture, clutter, noise) is
drawn from `Scene.texture_seed`.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Only ever a needle in a video, never a subject, so that "the heart" is unambiguous.
NEEDLE_SHAPE = "heart"
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 215, 40),
    "purple": (150, 60, 190),
    "orange": (245, 135, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SIZES = {"small": 0.062, "large": 0.105}
PLACES = ("grass", "sand", "water", "brick", "snow", "night")
# A base colour and a texture per place; muted, so that no object colour is a place colour.
_PLACE_BASE = {
    "grass": (118, 148, 96),
    "sand": (196, 180, 144),
    "water": (110, 150, 176),
    "brick": (160, 112, 96),
    "snow": (206, 212, 220),
    "night": (66, 66, 92),
}
_SUPERSAMPLE = 4
# Distinct textures per place; a bound lets a training run cache the backgrounds, which cost most of a rendering.
TEXTURES = 600
ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. `x`, `y`: centre in [0, 1]; `scale` multiplies the size's radius (1 but for growth in a video)."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    scale: float = 1.0

    @property
    def radius(self) -> float:
        return SIZES[self.size] * self.scale

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    def at(self, x: float, y: float) -> "Thing":
        return replace(self, x=x, y=y)


@dataclass(frozen=True, slots=True)
class Scene:
    place: str
    things: tuple[Thing, ...]
    texture_seed: int = 0


def position_name(x: float, y: float) -> str:
    """One of nine: "top left", "top", …, "center", …, "bottom right"."""
    row, column = min(int(y * 3), 2), min(int(x * 3), 2)
    return " ".join(part for part in (ROWS[row], COLUMNS[column]) if part) or "center"


POSITIONS = tuple(position_name((c + 0.5) / 3, (r + 0.5) / 3) for r in range(3) for c in range(3))


def is_clearly_placed(x: float, y: float, margin: float = 0.035) -> bool:
    """Whether a centre keeps `margin` from the borders of the nine fields, so that its name is beyond dispute."""
    return all(abs(v - border) >= margin for v in (x, y) for border in (1 / 3, 2 / 3))


def free_spot(
    rng: np.random.Generator, taken: list[tuple[float, float]], *, distance: float = 0.24, tries: int = 60
) -> tuple[float, float] | None:
    """A centre at least `distance` from every taken one and clearly inside one of the nine fields; None if crowded."""
    for _ in range(tries):
        x, y = rng.uniform(0.12, 0.88, size=2)
        if is_clearly_placed(x, y) and all(math.hypot(x - a, y - b) >= distance for a, b in taken):
            return float(x), float(y)
    return None


def random_scene(rng: np.random.Generator, *, max_things: int = 7, needle_share: float = 0.12) -> Scene:
    """A still scene of 1 to `max_things` objects, no two of one colour and shape, none overlapping."""
    things: list[Thing] = []
    taken: list[tuple[float, float]] = []
    used: set[tuple[str, str]] = set()
    # Few colours and shapes in a scene make counts above one and confusable neighbours common.
    colors = rng.choice(list(COLORS), size=rng.integers(2, len(COLORS) + 1), replace=False)
    shapes = rng.choice(SHAPES, size=rng.integers(2, len(SHAPES) + 1), replace=False)
    for _ in range(int(rng.integers(1, max_things + 1))):
        shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
        spot = free_spot(rng, taken)
        if spot is None or (shape, color) in used:
            continue
        used.add((shape, color))
        taken.append(spot)
        things.append(Thing(shape, color, str(rng.choice(list(SIZES))), *spot))
    spot = free_spot(rng, taken)
    if spot is not None and (not things or rng.random() < needle_share):
        things.append(Thing(NEEDLE_SHAPE, str(rng.choice(list(COLORS))), str(rng.choice(list(SIZES))), *spot))
    return Scene(str(rng.choice(PLACES)), tuple(things), int(rng.integers(TEXTURES)))


def render(scene: Scene, size_px: int) -> np.ndarray:
    """uint8 [size_px, size_px, 3]."""
    canvas = Image.fromarray(background(scene.place, scene.texture_seed, size_px))
    for thing in scene.things:
        draw_thing(canvas, thing)
    return np.asarray(canvas)


def draw_thing(canvas: Image.Image, thing: Thing) -> None:
    size_px = canvas.size[0]
    sprite = _sprite(thing.shape, thing.color, round(thing.radius * size_px * 2))
    corner = (round(thing.x * size_px - sprite.width / 2), round(thing.y * size_px - sprite.height / 2))
    canvas.paste(sprite, corner, sprite)


@lru_cache(maxsize=4096)
def background(place: str, texture_seed: int, size_px: int) -> np.ndarray:
    """The place's texture with grey clutter; uint8 [size_px, size_px, 3]."""
    rng = np.random.default_rng([texture_seed, PLACES.index(place)])
    yy, xx = np.mgrid[0:size_px, 0:size_px] / size_px
    base = np.asarray(_PLACE_BASE[place], np.float32) + rng.uniform(-10, 10, size=3).astype(np.float32)
    light = 10 * (rng.uniform(-1, 1) * (xx - 0.5) + rng.uniform(-1, 1) * (yy - 0.5))
    phase, frequency = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    if place == "grass":
        pattern = 12 * np.sin(frequency * 150 * xx + 3 * np.sin(40 * yy) + phase)
    elif place == "sand":
        pattern = 9 * np.sin(frequency * 60 * (xx + 0.6 * yy) + phase)
    elif place == "water":
        pattern = 12 * np.sin(frequency * 75 * yy + 2 * np.sin(12 * xx + phase))
    elif place == "brick":
        row = np.floor(yy * 12 + phase)
        mortar = ((yy * 12 + phase) % 1 < 0.16) | ((xx * 6 + 0.5 * (row % 2) + phase) % 1 < 0.08)
        pattern = np.where(mortar, 28.0, -4.0)
    elif place == "snow":
        pattern = 7 * np.sin(frequency * 14 * xx + phase) * np.sin(frequency * 11 * yy)
    else:
        pattern = np.where(rng.random((size_px, size_px)) < 0.004, 110.0, 0.0)
    coarse = rng.normal(0, 6, size=(size_px // 8 + 1, size_px // 8 + 1)).repeat(8, 0).repeat(8, 1)[:size_px, :size_px]
    pixels = base + (light + pattern + coarse)[..., None] + rng.normal(0, 3, size=(size_px, size_px, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 12))):
        grey = int(rng.integers(95, 165))
        x, y, length = rng.uniform(0, size_px), rng.uniform(0, size_px), rng.uniform(0.01, 0.05) * size_px
        angle = rng.uniform(0, np.pi)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        draw.line((x, y, *end), fill=(grey, grey, grey), width=max(1, size_px // 96))
    return np.asarray(image)


@lru_cache(maxsize=4096)
def _sprite(shape: str, color: str, diameter_px: int) -> Image.Image:
    """An anti-aliased RGBA sprite with a thin dark outline, which keeps white on snow and black at night visible."""
    diameter_px = max(diameter_px, 3)
    d = diameter_px * _SUPERSAMPLE
    mask = Image.new("L", (d, d), 0)
    _draw_shape(ImageDraw.Draw(mask), shape, d, inset=0)
    inner = Image.new("L", (d, d), 0)
    _draw_shape(ImageDraw.Draw(inner), shape, d, inset=d * 0.07)
    outline = (110, 110, 110) if color == "black" else (45, 45, 45)
    pixels = Image.new("RGB", (d, d), outline)
    pixels.paste(COLORS[color], (0, 0, d, d), inner)
    sprite = pixels.convert("RGBA")
    sprite.putalpha(mask)
    return sprite.resize((diameter_px, diameter_px), Image.Resampling.BOX)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, d: float, inset: float) -> None:
    a, b, c = inset, d - inset, d / 2
    if shape == "circle":
        draw.ellipse((a, a, b, b), fill=255)
    elif shape == "square":
        m = d * 0.08
        draw.rectangle((a + m, a + m, b - m, b - m), fill=255)
    elif shape == "triangle":
        draw.polygon([(c, a), (b, b - d * 0.06), (a, b - d * 0.06)], fill=255)
    elif shape == "star":
        radius = c - inset
        points = []
        for i in range(10):
            r = radius if i % 2 == 0 else radius * 0.45
            angle = -math.pi / 2 + i * math.pi / 5
            points.append((c + r * math.cos(angle), c + r * math.sin(angle)))
        draw.polygon(points, fill=255)
    elif shape == "cross":
        w = d * 0.17 - inset * 0.5
        draw.rectangle((c - w, a, c + w, b), fill=255)
        draw.rectangle((a, c - w, b, c + w), fill=255)
    elif shape == "ring":
        draw.ellipse((a, a, b, b), fill=255)
        hole = d * 0.26 + inset
        draw.ellipse((hole, hole, d - hole, d - hole), fill=0)
    elif shape == NEEDLE_SHAPE:
        r = d * 0.27 - inset * 0.6
        for x in (d * 0.28, d * 0.72):
            draw.ellipse((x - r, d * 0.3 - r, x + r, d * 0.3 + r), fill=255)
        draw.polygon([(a + d * 0.02, d * 0.42), (b - d * 0.02, d * 0.42), (c, b)], fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}; expected one of {(*SHAPES, NEEDLE_SHAPE)}")
