"""Questions, answers and captions about a plot: the families of MVBench, TempCompass and MLVU in miniature. Pure."""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np

from linvt.tiny.image_questions import NUMBERS, Question
from linvt.tiny.scene import COLORS, NEEDLE_SHAPE, PLACES, POSITIONS, SHAPES, SIZES, position_name
from linvt.tiny.video_plot import DIRECTIONS, Actor, Plot, Shot, pair_split, possible_colors
from linvt.tiny.vocabulary import ORDINALS


def caption(plot: Plot) -> str:
    """Shot by shot, each as a still of its beginning would be captioned, and what moves or changes there."""
    return " . cut . ".join(_shot_caption(shot) for shot in plot.shots)


def _shot_caption(shot: Shot) -> str:
    in_reading_order = sorted(shot.actors, key=lambda actor: (int(actor.thing.y * 3), actor.thing.x))
    return " . ".join([shot.place, *map(_act, in_reading_order)])


def _act(actor: Actor) -> str:
    thing = actor.thing
    still = f"{thing.size} {thing.name} at {position_name(thing.x, thing.y)}"
    if actor.direction is not None:
        return f"{still} moves {actor.direction}"
    if actor.becomes is not None:
        return f"{still} becomes {actor.becomes}"
    return still


def ask(plot: Plot, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` different questions, one a family before any family's second."""
    pools = [[pool[i] for i in rng.permutation(len(pool))] for pool in (family(plot) for family in FAMILIES.values())]
    questions: list[Question] = []
    while len(questions) < count and any(pools):
        for i in rng.permutation(len(pools)):
            if pools[i] and len(questions) < count:
                questions.append(pools[i].pop())
    return questions


def study(plot: Plot, rng: np.random.Generator) -> list[Question]:
    """All that a training video has to teach, shuffled: every question of every family, and what leads up to them.

    The latter are what the image-LLM knows from stills, how each mover starts, goes and ends, and the caption of a
    shot. No held-out score counts them.
    """
    # A mover of the last shot is asked about its end by its family and by its movement: once is enough.
    questions = [question for name, family in FAMILIES.items() if name != "end state" for question in family(plot)]
    questions += [*_still_lifes(plot, rng), *_movements(plot, rng), _shot_caption_question(plot, rng)]
    return [questions[i] for i in rng.permutation(len(questions))]


def _moves(plot: Plot) -> list[tuple[int, Actor]]:
    return [(i, actor) for i, shot in enumerate(plot.shots) for actor in shot.actors if actor.direction is not None]


def _presence(plot: Plot, *, still: bool) -> dict[str, list[int]]:
    """In which shots each subject is; with `still`, only subjects that neither move nor change."""
    shots: dict[str, list[int]] = {}
    for i, shot in enumerate(plot.shots):
        for actor in shot.actors:
            acts = actor.direction is not None or actor.becomes is not None
            if actor.thing.name in plot.subjects and not (still and acts):
                shots.setdefault(actor.thing.name, []).append(i)
    return shots


def _orders(plot: Plot) -> list[Question]:
    questions = []
    for (a_shot, a), (b_shot, b) in itertools.permutations(_moves(plot), 2):
        if a_shot != b_shot:
            names = (a.thing.name, b.thing.name)
            first = names[0] if a_shot < b_shot else names[1]
            questions.append(Question(f"which moves first , the {names[0]} or the {names[1]} ?", first, "order", names))
    return questions


def _counts(plot: Plot) -> list[Question]:
    return [
        Question(f"in how many shots is there a {name} ?", NUMBERS[len(shots)], "count", NUMBERS[1:5])
        for name, shots in _presence(plot, still=True).items()
    ]


def _directions(plot: Plot) -> list[Question]:
    return [
        Question(f"which way does the {actor.thing.name} move ?", actor.direction or "", "direction", tuple(DIRECTIONS))
        for _, actor in _moves(plot)
    ]


def _changes(plot: Plot) -> list[Question]:
    questions = []
    for actor in (actor for shot in plot.shots for actor in shot.actors):
        if actor.becomes is not None:
            text = f"what color does the {actor.thing.name} become ?"
            choices = possible_colors(actor.thing.color, actor.thing.shape)
            questions.append(Question(text, actor.becomes, "change", choices))
    return questions


def _nth_shots(plot: Plot) -> list[Question]:
    return [
        Question(f"what is the place in the {ordinal} shot ?", shot.place, "nth shot", PLACES)
        for ordinal, shot in zip(ORDINALS, plot.shots)
    ]


def _cuts(plot: Plot) -> list[Question]:
    places = [shot.place for shot in plot.shots]
    questions = []
    for i, place in enumerate(places):
        for side, j in (("before", i - 1), ("after", i + 1)):
            if places.count(place) == 1 and 0 <= j < len(places):
                others = tuple(other for other in PLACES if other != place)
                questions.append(Question(f"what place comes right {side} the {place} ?", places[j], "cut", others))
    return questions


def _needles(plot: Plot) -> list[Question]:
    if plot.needle_color is None:
        return []
    text = f"what color is the {NEEDLE_SHAPE} that appears briefly ?"
    return [Question(text, plot.needle_color, "needle", tuple(COLORS))]


def _ends(plot: Plot) -> list[Question]:
    return [
        Question(f"where is the {actor.thing.name} at the end ?", position_name(*actor.end), "end state", POSITIONS)
        for actor in plot.shots[-1].actors
        if actor.direction is not None
    ]


def _which_shots(plot: Plot) -> list[Question]:
    choices = tuple(ORDINALS[: len(plot.shots)])
    return [
        Question(f"in which shot is the {name} ?", ORDINALS[found[0]], "which shot", choices)
        for name, found in _presence(plot, still=False).items()
        if len(found) == 1
    ]


FAMILIES: dict[str, Callable[[Plot], list[Question]]] = {
    "order": _orders,
    "count": _counts,
    "direction": _directions,
    "change": _changes,
    "nth shot": _nth_shots,
    "cut": _cuts,
    "needle": _needles,
    "end state": _ends,
    "which shot": _which_shots,
}


def _still_lifes(plot: Plot, rng: np.random.Generator) -> list[Question]:
    """Where and what size are the objects that appear once and do nothing; is there this or that?"""
    actors = [actor for shot in plot.shots for actor in shot.actors]
    times = Counter(actor.thing.name for actor in actors)
    questions = []
    for thing in (a.thing for a in actors if a.direction is None and a.becomes is None and times[a.thing.name] == 1):
        position = position_name(thing.x, thing.y)
        questions.append(Question(f"where is the {thing.name} ?", position, "position", POSITIONS))
        questions.append(Question(f"what size is the {thing.name} ?", thing.size, "attribute", tuple(SIZES)))
    names = sorted({*times, *(f"{a.becomes} {a.thing.shape}" for a in actors if a.becomes is not None)})
    for name in rng.permutation(names)[:4].tolist():
        questions.append(Question(f"is there a {name} ?", "yes", "attribute", ("yes", "no")))
        # The hard negative shares its colour or its shape with something that is there.
        color, shape = name.split()
        other = (str(rng.choice(list(COLORS))), shape) if rng.random() < 0.5 else (color, str(rng.choice(SHAPES)))
        may_ask = other[1] == NEEDLE_SHAPE or pair_split(*other) == "train"
        if may_ask and " ".join(other) not in names:
            questions.append(Question(f"is there a {' '.join(other)} ?", "no", "attribute", ("yes", "no")))
    return questions


def _movements(plot: Plot, rng: np.random.Generator) -> list[Question]:
    """Where every mover starts and ends, and whether it moves this way or that."""
    questions = []
    for _, actor in _moves(plot):
        name, direction = actor.thing.name, actor.direction
        start, end = position_name(actor.thing.x, actor.thing.y), position_name(*actor.end)
        questions.append(Question(f"where is the {name} at the beginning ?", start, "position", POSITIONS))
        questions.append(Question(f"where is the {name} at the end ?", end, "end state", POSITIONS))
        other = str(rng.choice([d for d in DIRECTIONS if d != direction]))
        questions.append(Question(f"does the {name} move {direction} ?", "yes", "direction", ("yes", "no")))
        questions.append(Question(f"does the {name} move {other} ?", "no", "direction", ("yes", "no")))
    return questions


def _shot_caption_question(plot: Plot, rng: np.random.Generator) -> Question:
    number = int(rng.integers(len(plot.shots)))
    return Question(f"describe the {ORDINALS[number]} shot", _shot_caption(plot.shots[number]), "caption", ())
