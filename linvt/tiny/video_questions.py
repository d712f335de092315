"""Questions, answers and captions about a plot: the families of MVBench, TempCompass and MLVU in miniature. Pure."""

from collections.abc import Callable

import numpy as np

from linvt.tiny.image_questions import NUMBERS, Question
from linvt.tiny.scene import COLORS, PLACES, POSITIONS, position_name
from linvt.tiny.video_plot import DIRECTIONS, Actor, Plot
from linvt.tiny.vocabulary import ORDINALS


def caption(plot: Plot) -> str:
    """Shot by shot: the place, then what each actor does there, movers first."""
    shots = []
    for shot in plot.shots:
        acts = [_act(actor) for actor in sorted(shot.actors, key=lambda a: (a.direction is None, a.becomes is None))]
        shots.append(" . ".join([shot.place, *acts]))
    return " . cut . ".join(shots)


def _act(actor: Actor) -> str:
    if actor.direction is not None:
        return f"{actor.thing.name} moves {actor.direction}"
    if actor.becomes is not None:
        return f"{actor.thing.name} becomes {actor.becomes}"
    return actor.thing.name


def ask(plot: Plot, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` different questions, one a family before any family's second."""
    questions: dict[str, Question] = {}
    for _ in range(3):
        for family in rng.permutation(list(FAMILIES)):
            question = FAMILIES[str(family)](plot, rng)
            if question is not None and len(questions) < count:
                questions.setdefault(question.text, question)
    return list(questions.values())


def _moves(plot: Plot) -> list[tuple[int, Actor]]:
    return [(i, actor) for i, shot in enumerate(plot.shots) for actor in shot.actors if actor.direction is not None]


def _presence(plot: Plot) -> dict[str, list[int]]:
    """In which shots each still subject is."""
    shots: dict[str, list[int]] = {}
    for i, shot in enumerate(plot.shots):
        for actor in shot.actors:
            if actor.thing.name in plot.subjects and actor.direction is None and actor.becomes is None:
                shots.setdefault(actor.thing.name, []).append(i)
    return shots


def _pick(rng: np.random.Generator, options: list) -> int:
    return int(rng.integers(len(options)))


def _order(plot: Plot, rng: np.random.Generator) -> Question | None:
    moves = _moves(plot)
    if len({shot for shot, _ in moves}) < 2:
        return None
    i, j = rng.choice(len(moves), size=2, replace=False)
    (a_shot, a), (b_shot, b) = moves[i], moves[j]
    if a_shot == b_shot:
        return None
    first = a if a_shot < b_shot else b
    names = (a.thing.name, b.thing.name)
    return Question(f"which moves first , the {names[0]} or the {names[1]} ?", first.thing.name, "order", names)


def _count(plot: Plot, rng: np.random.Generator) -> Question | None:
    presence = _presence(plot)
    if not presence:
        return None
    name = sorted(presence)[_pick(rng, list(presence))]
    return Question(f"in how many shots is there a {name} ?", NUMBERS[len(presence[name])], "count", NUMBERS[1:5])


def _direction(plot: Plot, rng: np.random.Generator) -> Question | None:
    moves = _moves(plot)
    if not moves:
        return None
    _, actor = moves[_pick(rng, moves)]
    return Question(
        f"which way does the {actor.thing.name} move ?", actor.direction or "", "direction", tuple(DIRECTIONS)
    )


def _change(plot: Plot, rng: np.random.Generator) -> Question | None:
    for shot in plot.shots:
        for actor in shot.actors:
            if actor.becomes is not None:
                others = tuple(color for color in COLORS if color != actor.thing.color)
                return Question(f"what color does the {actor.thing.name} become ?", actor.becomes, "change", others)
    return None


def _nth_shot(plot: Plot, rng: np.random.Generator) -> Question | None:
    i = _pick(rng, list(plot.shots))
    return Question(f"what is the place in the {ORDINALS[i]} shot ?", plot.shots[i].place, "nth shot", PLACES)


def _cut(plot: Plot, rng: np.random.Generator) -> Question | None:
    places = [shot.place for shot in plot.shots]
    side = "after" if rng.random() < 0.5 else "before"
    step = 1 if side == "after" else -1
    options = [i for i, p in enumerate(places) if places.count(p) == 1 and 0 <= i + step < len(places)]
    if not options:
        return None
    i = options[_pick(rng, options)]
    others = tuple(place for place in PLACES if place != places[i])
    return Question(f"what place comes right {side} the {places[i]} ?", places[i + step], "cut", others)


def _needle(plot: Plot, rng: np.random.Generator) -> Question | None:
    if plot.needle_color is None:
        return None
    return Question("what color is the heart that appears briefly ?", plot.needle_color, "needle", tuple(COLORS))


def _end(plot: Plot, rng: np.random.Generator) -> Question | None:
    movers = [actor for actor in plot.shots[-1].actors if actor.direction is not None]
    if not movers:
        return None
    actor = movers[_pick(rng, movers)]
    return Question(f"where is the {actor.thing.name} at the end ?", position_name(*actor.end), "end state", POSITIONS)


def _which_shot(plot: Plot, rng: np.random.Generator) -> Question | None:
    once = sorted((name, shots[0]) for name, shots in _presence(plot).items() if len(shots) == 1)
    if not once:
        return None
    name, i = once[_pick(rng, once)]
    return Question(f"in which shot is the {name} ?", ORDINALS[i], "which shot", tuple(ORDINALS[: len(plot.shots)]))


FAMILIES: dict[str, Callable[[Plot, np.random.Generator], Question | None]] = {
    "order": _order,
    "count": _count,
    "direction": _direction,
    "change": _change,
    "nth shot": _nth_shot,
    "cut": _cut,
    "needle": _needle,
    "end state": _end,
    "which shot": _which_shot,
}
