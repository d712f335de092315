"""The rendered world: exact labels, disjoint splits, real cuts, and nothing to guess from the question alone."""

import collections
import hashlib
import json

import av
import numpy as np
import pytest

from linvt.shots import fast_detector_dtype, load_detector, shots_from_probabilities
from linvt.tiny import video_questions
from linvt.tiny.scene import COLORS, NEEDLE_SHAPE, SHAPES
from linvt.tiny.video_plot import DIRECTIONS, FRAMES_PER_SECOND, make_plot, pair_split
from linvt.tiny.vocabulary import ORDINALS, WORDS
from linvt.tiny.world import SPLITS, make_world, render_shot
from linvt.tiny.world_config import WorldConfig
from linvt.video import decode_video

PLOTS = {split: [make_plot(0, split, i) for i in range(250)] for split in SPLITS}


def config(out, **changes):
    sizes = {"train_videos": 3, "val_videos": 1, "test_videos": 2, "train_images": 2, "test_images": 1}
    return WorldConfig(**{"out": str(out), **sizes, "num_workers": 1, **changes})


def digests(root):
    """Of every file that holds something: without validation images, their annotation file is empty."""
    contents = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if content}


def test_files_are_a_function_of_the_seed_and_a_rerun_fills_gaps(tmp_path):
    make_world(config(tmp_path / "a"))
    make_world(config(tmp_path / "b", num_workers=2))
    expected = digests(tmp_path / "a")
    assert digests(tmp_path / "b") == expected
    (tmp_path / "b" / "train" / "videos" / "000001.mp4").unlink()
    make_world(config(tmp_path / "b"))
    assert digests(tmp_path / "b") == expected
    make_world(config(tmp_path / "c", seed=1))
    other = digests(tmp_path / "c")
    assert not set(other.values()) & set(expected.values())


def test_annotations_name_files_that_decode_to_the_plots_frames(tmp_path):
    make_world(config(tmp_path))
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 6
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"video", "image"}
    for row in rows:
        assert (tmp_path / row["media"]).is_file()
        assert row["qa"]
    with av.open(str(tmp_path / "test" / "videos" / "000001.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    plot = make_plot(0, "test", 1)
    assert len(frames) == plot.num_frames
    drawn = next(iter(render_shot(plot.shots[0])))
    assert np.abs(drawn.astype(int) - frames[0]).mean() < 8


def test_lengths_and_shot_counts_are_as_stated():
    for plot in PLOTS["train"]:
        assert 3 <= len(plot.shots) <= 12
        assert 4.5 <= plot.num_frames / FRAMES_PER_SECOND <= 75
    long = make_plot(0, "test", 7, long=True)
    assert 290 <= long.num_frames / FRAMES_PER_SECOND <= 310
    assert long.needle_color is not None


def test_no_training_video_shows_a_pair_or_a_sequence_of_places_that_a_test_asks_about():
    actors = [actor for plot in PLOTS["train"] for shot in plot.shots for actor in shot.actors]
    things = [actor.at(time) for actor in actors for time in (0.0, 1.0)]
    shown = {(thing.color, thing.shape) for thing in things}
    asked = {tuple(name.split()) for plot in PLOTS["test"] for name in plot.subjects}
    assert not shown & asked
    assert {shape for _, shape in asked} == set(SHAPES)
    sequences = {split: {tuple(shot.place for shot in plot.shots) for plot in PLOTS[split]} for split in SPLITS}
    assert not sequences["train"] & sequences["test"]
    assert not sequences["train"] & sequences["val"]


def test_every_colour_and_shape_has_its_pairs_in_every_split():
    for split in SPLITS:
        pairs = [(c, s) for c in COLORS for s in SHAPES if pair_split(c, s) == split]
        assert {s for _, s in pairs} == set(SHAPES)
    assert sum(pair_split(c, s) == "train" for c in COLORS for s in SHAPES) == 36


@pytest.mark.parametrize("split", SPLITS)
def test_subjects_are_unambiguous(split):
    """A subject names one object a shot, and no other object ever takes its name."""
    for plot in PLOTS[split]:
        for shot in plot.shots:
            names = [actor.thing.name for actor in shot.actors]
            assert len(names) == len(set(names))
            for actor in shot.actors:
                if actor.becomes is not None:
                    assert f"{actor.becomes} {actor.thing.shape}" not in set(plot.subjects) | set(names)
                for time in (0.0, 0.5, 1.0):
                    thing = actor.at(time)
                    assert 0.05 <= thing.x <= 0.95
                    assert 0.05 <= thing.y <= 0.95


def test_answers_follow_from_the_plot():
    rng = np.random.default_rng(0)
    for plot in PLOTS["test"][:100]:
        for question in video_questions.ask(plot, rng, 9):
            assert question.answer in question.choices
            if question.family == "direction":
                name = question.text.removeprefix("which way does the ").removesuffix(" move ?")
                (actor,) = [a for s in plot.shots for a in s.actors if a.thing.name == name and a.direction]
                dx, dy = DIRECTIONS[question.answer]
                assert np.sign(actor.at(1).x - actor.at(0).x) == dx
                assert np.sign(actor.at(1).y - actor.at(0).y) == dy
            if question.family == "count":
                name = question.text.removeprefix("in how many shots is there a ").removesuffix(" ?")
                count = sum(any(a.thing.name == name for a in s.actors) for s in plot.shots)
                assert ("one", "two", "three", "four")[count - 1] == question.answer


def test_every_word_is_in_the_vocabulary():
    rng = np.random.default_rng(0)
    for plot in PLOTS["train"][:100]:
        for question in video_questions.ask(plot, rng, 9):
            assert set(f"{question.text} {question.answer}".split()) <= set(WORDS)
        assert set(video_questions.caption(plot).split()) <= set(WORDS)


def test_training_videos_come_with_every_question_and_what_is_plainly_there():
    rng = np.random.default_rng(0)
    for plot in PLOTS["train"][:60]:
        questions = video_questions.study(plot, rng)
        asked = {question.text for question in questions}
        assert {question.text for question in video_questions.ask(plot, rng, 1000)} <= asked
        assert len({f"describe the {ordinal} shot" for ordinal in ORDINALS[: len(plot.shots)]} & asked) == 1
        names = {a.at(time).name for shot in plot.shots for a in shot.actors for time in (0.0, 1.0)}
        for question in questions:
            assert set(f"{question.text} {question.answer}".split()) <= set(WORDS)
            assert not question.choices or question.answer in question.choices
            if question.text.startswith("is there a "):
                name = question.text.removeprefix("is there a ").removesuffix(" ?")
                assert (name in names) == (question.answer == "yes")
                color, shape = name.split()
                assert shape == NEEDLE_SHAPE or pair_split(color, shape) == "train"


def test_the_question_alone_gives_little_away():
    """The best constant answer per family is near chance: a text-only model can know no more but the choices."""
    rng = np.random.default_rng(0)
    answers, chances = collections.defaultdict(list), collections.defaultdict(list)
    for plot in PLOTS["train"]:
        for question in video_questions.ask(plot, rng, 9):
            first = question.choices.index(question.answer) if question.family == "order" else question.answer
            answers[question.family].append(first)
            chances[question.family].append(1 / len(question.choices))
    assert len(answers) == 9
    for family, given in answers.items():
        best = collections.Counter(given).most_common(1)[0][1] / len(given)
        assert best <= np.mean(chances[family]) + 0.2, (family, best)


def test_transnetv2_finds_the_rendered_cuts(tmp_path):
    make_world(config(tmp_path, train_videos=6, train_images=0, test_images=0, test_videos=0, val_videos=0))
    detector = load_detector("transnetv2", dtype=fast_detector_dtype())
    found, wanted = 0, 0
    for i in range(6):
        cuts = np.cumsum([shot.num_frames for shot in make_plot(0, "train", i).shots])[:-1]
        video = decode_video(str(tmp_path / "train" / "videos" / f"{i:06d}.mp4"), max_side=144, max_candidates=64)
        starts = [shot.start for shot in shots_from_probabilities(detector.predict(video.detector_frames), 0.5)]
        found += sum(any(abs(cut - start) <= 1 for start in starts) for cut in cuts)
        wanted += len(cuts)
        assert all(min(abs(cut - start) for cut in (0, *cuts)) <= 2 for start in starts), "a cut that is not there"
    assert found >= 0.85 * wanted
