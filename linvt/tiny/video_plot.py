"""What happens in a rendered video: shots, who is in them, who moves or changes. Pure and seeded.

A plot is decided before anything is drawn, so questions, answers and captions are read off it exactly. Times are
fractions of a shot. Splits share nothing that would give an answer away: neither a colour-shape pair that test
questions are about nor a test video's sequence of places ever occurs in a training video.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from linvt.tiny.scene import COLORS, NEEDLE_SHAPE, PLACES, SHAPES, SIZES, Thing, free_spot, is_clearly_placed

Split = Literal["train", "val", "test"]
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FRAMES_PER_SECOND = 8
_TRAVEL = 0.42
_MAX_SHOTS = 12


@dataclass(frozen=True, slots=True)
class Actor:
    """An object in one shot. It may move from `thing`'s place to `end`, or turn into `becomes`, not both."""

    thing: Thing
    direction: str | None = None
    becomes: str | None = None
    starts: float = 0.2
    stops: float = 0.8

    @property
    def end(self) -> tuple[float, float]:
        if self.direction is None:
            return self.thing.x, self.thing.y
        dx, dy = DIRECTIONS[self.direction]
        return self.thing.x + dx * _TRAVEL, self.thing.y + dy * _TRAVEL

    def at(self, time: float) -> Thing:
        """The object as it looks at a fraction of its shot."""
        progress = min(max((time - self.starts) / (self.stops - self.starts), 0.0), 1.0)
        thing = self.thing
        if self.direction is not None:
            x, y = self.end
            thing = thing.at(thing.x + progress * (x - thing.x), thing.y + progress * (y - thing.y))
        if self.becomes is not None and progress >= 0.5:
            thing = replace(thing, color=self.becomes)
        return thing


@dataclass(frozen=True, slots=True)
class Shot:
    place: str
    texture_seed: int
    num_frames: int
    actors: tuple[Actor, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    shots: tuple[Shot, ...]
    subjects: tuple[str, ...]
    """Names that questions may ask about: each belongs to one object throughout the video."""
    needle_color: str | None
    """Of the heart that a single short shot shows."""

    @property
    def num_frames(self) -> int:
        return sum(shot.num_frames for shot in self.shots)


def make_plot(seed: int, split: Split, index: int, *, long: bool = False) -> Plot:
    """The plot of video `index` of a split; 3 to 12 shots in 5 to 60 seconds, or 5 minutes if `long`."""
    rng = np.random.default_rng([seed, ("train", "val", "test").index(split), index])
    num_shots = _MAX_SHOTS if long else int(rng.choice(np.arange(3, _MAX_SHOTS + 1), p=_SHOT_COUNT_SHARES))
    places = _places(rng, split, num_shots)
    duration_s = 300.0 if long else min(max(rng.lognormal(np.log(9.5), 0.35), 5.0, 1.7 * num_shots), 60.0)
    lengths = _shot_lengths(rng, num_shots, round(duration_s * FRAMES_PER_SECOND))
    needle_at = int(rng.integers(1, num_shots - 1)) if num_shots > 3 and (long or rng.random() < 0.5) else None
    if needle_at is not None:
        spare = lengths[needle_at] - int(rng.integers(7, 11))
        lengths[needle_at] -= spare
        lengths[(needle_at + 2) % num_shots] += spare
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    asked = [pair for pair in pairs if pair_split(*pair) == split]
    others = [pair for pair in pairs if pair_split(*pair) == "train"]
    cast = _draw(rng, asked, 6)
    extras = [pair for pair in _draw(rng, others, 14) if pair not in cast]
    casting = _cast_shots(rng, num_shots, cast, needle_at)
    needle_color = str(rng.choice(list(COLORS))) if needle_at is not None else None
    changed: set[tuple[str, str]] = set()
    shots = []
    for i in range(num_shots):
        actors = _stage(rng, casting[i], extras, cast, changed)
        if i == needle_at and needle_color is not None:
            actors = _with_needle(rng, actors, needle_color)
        shots.append(Shot(places[i], int(rng.integers(2**31)), lengths[i], tuple(actors)))
    return Plot(tuple(shots), tuple(f"{color} {shape}" for color, shape in cast), needle_color)


_SHOT_COUNT_SHARES = np.array([4, 5, 4, 3, 1, 1, 0.5, 0.5, 0.5, 0.5])
_SHOT_COUNT_SHARES = _SHOT_COUNT_SHARES / _SHOT_COUNT_SHARES.sum()


def pair_split(color: str, shape: str) -> Split:
    """Which split may ask about a colour-shape pair: a Latin square, so every colour and shape is in every split."""
    rest = (list(COLORS).index(color) + 3 * SHAPES.index(shape)) % 8
    return "test" if rest == 0 else "val" if rest == 1 else "train"


def possible_colors(color: str, shape: str) -> tuple[str, ...]:
    """What an object may turn into, in any split: the pairs that only training videos ask about, but for its own."""
    return tuple(c for c in COLORS if c != color and pair_split(c, shape) == "train")


def _places_split(places: tuple[str, ...]) -> Split:
    digit = hashlib.sha256(" ".join(places).encode()).digest()[0] % 8
    return "test" if digit == 0 else "val" if digit == 1 else "train"


def _places(rng: np.random.Generator, split: Split, count: int) -> tuple[str, ...]:
    """A sequence in which neighbours differ and which belongs to the split."""
    while True:
        places: list[str] = []
        for _ in range(count):
            places.append(str(rng.choice([place for place in PLACES if not places or place != places[-1]])))
        if _places_split(tuple(places)) == split:
            return tuple(places)


def _shot_lengths(rng: np.random.Generator, count: int, total: int) -> list[int]:
    """Frames per shot: each at least 11, together about `total`."""
    shares = rng.dirichlet(np.full(count, 6.0))
    return [max(11, round(float(share) * total)) for share in shares]


def _draw(rng: np.random.Generator, pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    order = rng.permutation(len(pairs))[:count]
    return [pairs[i] for i in order]


def _cast_shots(
    rng: np.random.Generator, num_shots: int, cast: list[tuple[str, str]], needle_at: int | None
) -> list[list[tuple[tuple[str, str], str | None]]]:
    """Who is in which shot, with the role played there: "moves", "changes" or None (is merely there).

    The first three subjects move, each in one shot; the fourth changes colour; the fifth and sixth are only there, in
    one to four shots, to be counted and located.
    """
    shots: list[list[tuple[tuple[str, str], str | None]]] = [[] for _ in range(num_shots)]
    stages = [i for i in range(num_shots) if i != needle_at]
    movers = cast[:3]
    where = rng.choice(stages, size=min(3, len(stages)), replace=False)
    # The last shot always has a mover, whose place at the end differs from any earlier frame's.
    if stages[-1] not in where:
        where[rng.integers(len(where))] = stages[-1]
    for pair, shot in zip(movers, dict.fromkeys(int(w) for w in where)):
        shots[shot].append((pair, "moves"))
    if len(cast) > 3:
        shots[int(rng.choice(stages))].append((cast[3], "changes"))
    for pair in cast[4:]:
        times = min(int(rng.integers(1, 5)), len(stages))
        for shot in rng.choice(stages, size=times, replace=False):
            shots[int(shot)].append((pair, None))
    return shots


def _stage(
    rng: np.random.Generator,
    casting: list[tuple[tuple[str, str], str | None]],
    extras: list[tuple[str, str]],
    cast: list[tuple[str, str]],
    changed: set[tuple[str, str]],
) -> list[Actor]:
    """Puts a shot's actors and one to three still extras where they do not collide."""
    actors: list[Actor] = []
    taken: list[tuple[float, float]] = []
    for (color, shape), role in casting:
        size = str(rng.choice(list(SIZES)))
        if role == "moves":
            actor = _mover(rng, color, shape, size, taken)
        else:
            spot = free_spot(rng, taken, distance=0.2)
            if spot is None:
                continue
            becomes = None
            if role == "changes":
                # A new colour must not make another subject of it.
                becomes = str(rng.choice([c for c in possible_colors(color, shape) if (c, shape) not in cast]))
                changed.add((becomes, shape))
            actor = Actor(Thing(shape, color, size, *spot), becomes=becomes)
        taken.append((actor.thing.x, actor.thing.y))
        taken.append(actor.end)
        if actor.direction is not None:
            taken.append(((actor.thing.x + actor.end[0]) / 2, (actor.thing.y + actor.end[1]) / 2))
        actors.append(actor)
    wanted = int(rng.integers(1, 4))
    for color, shape in [extras[i] for i in rng.permutation(len(extras))]:
        if wanted == 0:
            break
        spot = free_spot(rng, taken, distance=0.2)
        if spot is None or (color, shape) in changed:
            continue
        taken.append(spot)
        actors.append(Actor(Thing(shape, color, str(rng.choice(list(SIZES))), *spot)))
        wanted -= 1
    return actors


def _mover(rng: np.random.Generator, color: str, shape: str, size: str, taken: list[tuple[float, float]]) -> Actor:
    """An actor whose path keeps inside the frame and away from others where it can, and ends in a clear field."""
    actor = None
    for _ in range(200):
        direction = str(rng.choice(list(DIRECTIONS)))
        dx, dy = DIRECTIONS[direction]
        x, y = rng.uniform(0.12, 0.88, size=2)
        starts = float(rng.uniform(0.05, 0.25))
        actor = Actor(
            Thing(shape, color, size, float(x), float(y)),
            direction=direction,
            starts=starts,
            stops=float(rng.uniform(0.75, 0.92)),
        )
        ex, ey = x + dx * _TRAVEL, y + dy * _TRAVEL
        inside = 0.1 <= ex <= 0.9 and 0.1 <= ey <= 0.9
        path = [(x, y), ((x + ex) / 2, (y + ey) / 2), (ex, ey)]
        free = all(np.hypot(a - u, b - v) >= 0.2 for a, b in path for u, v in taken)
        if inside and is_clearly_placed(ex, ey) and is_clearly_placed(x, y) and free:
            return actor
    assert actor is not None
    # Too crowded: a path that may cross somebody's is still inside the frame once clipped to the middle.
    return replace(actor, thing=actor.thing.at(0.5 - dx * _TRAVEL / 2, 0.5 - dy * _TRAVEL / 2))


def _with_needle(rng: np.random.Generator, actors: list[Actor], color: str) -> list[Actor]:
    taken = [(actor.thing.x, actor.thing.y) for actor in actors]
    spot = free_spot(rng, taken, distance=0.2)
    if spot is None:
        actors, spot = actors[:-1], (actors[-1].thing.x, actors[-1].thing.y)
    return [*actors, Actor(Thing(NEEDLE_SHAPE, color, str(rng.choice(list(SIZES))), *spot))]
