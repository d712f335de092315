"""Questions, answers and captions about a still scene: attributes, counts, positions, relations. Pure and seeded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from linvt.tiny.scene import COLORS, NEEDLE_SHAPE, PLACES, POSITIONS, SHAPES, SIZES, Scene, Thing, position_name

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
PLURALS = {shape: f"{shape}s" if shape != "cross" else "crosses" for shape in (*SHAPES, NEEDLE_SHAPE)}


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    answer: str
    family: str
    choices: tuple[str, ...]


def caption(scene: Scene) -> str:
    """The place, then every object in reading order: "grass . small red star at top left . …"."""
    things = sorted(scene.things, key=lambda thing: (int(thing.y * 3), thing.x))
    parts = [f"{thing.size} {thing.name} at {position_name(thing.x, thing.y)}" for thing in things]
    return " . ".join([scene.place, *parts])


def ask(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """`count` questions, families drawn evenly; yes/no questions are balanced by construction."""
    families = list(FAMILIES.values())
    questions: list[Question] = []
    while len(questions) < count:
        question = families[rng.integers(len(families))](scene, rng)
        if question is not None:
            questions.append(question)
    return questions


def _unique(things: Iterator[Thing]) -> Thing | None:
    found = list(things)
    return found[0] if len(found) == 1 else None


def _color_of_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    shape = str(rng.choice((*SHAPES, NEEDLE_SHAPE)))
    thing = _unique(thing for thing in scene.things if thing.shape == shape)
    return thing and Question(f"what color is the {shape} ?", thing.color, "attribute", tuple(COLORS))


def _shape_of_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    color = str(rng.choice(list(COLORS)))
    thing = _unique(thing for thing in scene.things if thing.color == color and thing.shape != NEEDLE_SHAPE)
    if thing is None or any(other.color == color and other is not thing for other in scene.things):
        return None
    return Question(f"what shape is the {color} object ?", thing.shape, "attribute", SHAPES)


def _size(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = scene.things[rng.integers(len(scene.things))]
    return Question(f"what size is the {thing.name} ?", thing.size, "attribute", tuple(SIZES))


def _place(scene: Scene, rng: np.random.Generator) -> Question | None:
    return Question("what is the place ?", scene.place, "attribute", PLACES)


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    kind = rng.integers(3)
    if kind == 0:
        count, what = len(scene.things), "objects"
    elif kind == 1:
        color = str(rng.choice([thing.color for thing in scene.things] if rng.random() < 0.8 else list(COLORS)))
        count, what = sum(thing.color == color for thing in scene.things), f"{color} objects"
    else:
        shape = str(rng.choice([thing.shape for thing in scene.things] if rng.random() < 0.8 else SHAPES))
        count, what = sum(thing.shape == shape for thing in scene.things), PLURALS[shape]
    return Question(f"how many {what} are there ?", NUMBERS[count], "count", NUMBERS)


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = scene.things[rng.integers(len(scene.things))]
    return Question(f"where is the {thing.name} ?", position_name(thing.x, thing.y), "position", POSITIONS)


def _at_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = scene.things[rng.integers(len(scene.things))]
    where = position_name(thing.x, thing.y)
    if sum(position_name(other.x, other.y) == where for other in scene.things) > 1:
        return None
    names = tuple(f"{color} {shape}" for color in COLORS for shape in (*SHAPES, NEEDLE_SHAPE))
    return Question(f"what is at the {where} ?", thing.name, "position", names)


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.things) < 2:
        return None
    i, j = rng.choice(len(scene.things), size=2, replace=False)
    a, b = scene.things[i], scene.things[j]
    dx, dy = b.x - a.x, b.y - a.y
    horizontal = abs(dx) > abs(dy)
    if max(abs(dx), abs(dy)) < 0.15:
        return None
    true = ("left of" if dx > 0 else "right of") if horizontal else ("above" if dy > 0 else "below")
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    asked, answer = (true, "yes") if rng.random() < 0.5 else (opposite[true], "no")
    return Question(f"is the {a.name} {asked} the {b.name} ?", answer, "relation", ("yes", "no"))


def _exists(scene: Scene, rng: np.random.Generator) -> Question | None:
    names = {thing.name for thing in scene.things}
    if rng.random() < 0.5:
        return Question(f"is there a {rng.choice(sorted(names))} ?", "yes", "attribute", ("yes", "no"))
    # The hard negatives share a colour or a shape with something that is there.
    thing = scene.things[rng.integers(len(scene.things))]
    other = f"{rng.choice(list(COLORS))} {thing.shape}" if rng.random() < 0.5 else f"{thing.color} {rng.choice(SHAPES)}"
    return None if other in names else Question(f"is there a {other} ?", "no", "attribute", ("yes", "no"))


FAMILIES: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color of shape": _color_of_shape,
    "shape of color": _shape_of_color,
    "size": _size,
    "place": _place,
    "count": _count,
    "position": _position,
    "at position": _at_position,
    "relation": _relation,
    "exists": _exists,
}
