import json
import threading

import numpy as np
import pytest
import torch

from linvt.annotations import Annotation, Turn, read_annotations
from linvt.backbones import load_backbone
from linvt.read_ahead import read_ahead
from linvt.shards import read_cache
from linvt.training.batches import CAPTION_INSTRUCTION, collate
from linvt.training.data import Source, VisitSet, open_sources, plan_visits, require_one_token_count
from tests.shards.cache_builder import save_cache
from tests.training.inputs import TOKENS_PER_FRAME, write_inputs


@pytest.fixture(scope="module")
def cache(inputs):
    return read_cache(inputs.cache)


@pytest.fixture(scope="module")
def annotations(inputs):
    return list(read_annotations([inputs.annotations], "linvt"))


def _question(media_id, number, kind="video"):
    return Annotation(media_id=media_id, kind=kind, turns=(Turn(question=f"q{number}", answer="a"),))


def _plan(cache, rows, *, media_prefix="", **settings) -> VisitSet:
    """The visits of one source."""
    return plan_visits(cache, [Source(name="rows", annotations=rows, media_prefix=media_prefix)], **settings)


def test_stage_1_visits_captions(cache, annotations):
    visits = _plan(cache, annotations, stage=1, turns_per_visit=5)
    assert len(visits) == len(annotations) == len(cache)
    caption_of_key = {cache.video_ids[row.media_id]: row.caption for row in annotations}
    assert [visit.key for visit in visits.visits] == list(cache.keys)
    for visit in visits.visits:
        assert visit.caption == caption_of_key[visit.key]
        assert visit.turns == (Turn(question=CAPTION_INSTRUCTION, answer=visit.caption),)


def test_stage_2_visits_a_video_once_for_so_many_questions(cache, annotations):
    visits = _plan(cache, annotations, stage=2, turns_per_visit=2)
    assert [len(visit.turns) for visit in visits.visits] == [2, 1] * len(annotations)
    turns_of_key = {cache.video_ids[row.media_id]: row.turns for row in annotations}
    asked = [(visit.key, turn) for visit in visits.visits for turn in visit.turns]
    assert asked == [(key, turn) for key in cache.keys for turn in turns_of_key[key]]


def test_rows_about_one_video_are_taken_together(cache):
    rows = [_question("videos/000.mp4", 1), _question("videos/001.mp4", 2), _question("videos/000.mp4", 3)]
    visits = _plan(cache, rows, stage=2, turns_per_visit=5)
    asked = {visit.key: [turn.question for turn in visit.turns] for visit in visits.visits}
    assert asked == {cache.video_ids["videos/000.mp4"]: ["q1", "q3"], cache.video_ids["videos/001.mp4"]: ["q2"]}


def test_the_order_of_annotation_rows_does_not_matter(cache, annotations):
    forward = _plan(cache, annotations, stage=2, turns_per_visit=2)
    backward = _plan(cache, annotations[::-1], stage=2, turns_per_visit=2)
    assert forward.visits == backward.visits
    assert forward.fingerprint == backward.fingerprint
    assert forward.fingerprint != _plan(cache, annotations[1:], stage=2, turns_per_visit=2).fingerprint


def test_a_loaded_visit_has_the_tokens_of_the_cache(cache, annotations):
    visits = _plan(cache, annotations, stage=1, turns_per_visit=5)
    for number in (0, 7, len(visits) - 1):
        visit = visits.load(number)
        assert visit.video.key == visits.visits[number].key
        assert torch.equal(visit.video.tokens, cache.get(visits.visits[number].key).tokens)
        assert visits.lengths[number] == len(visit.video.tokens)
        assert visit.video.key in cache.shards[int(visits.shards[number])]


def test_a_missing_video_is_an_error_that_names_it(cache, annotations):
    rows = [*annotations, _question("videos/none.mp4", 1)]
    with pytest.raises(ValueError, match=r"1 of 15 annotated media.*\(1 not in the cache\).*videos/none\.mp4"):
        _plan(cache, rows, stage=2, turns_per_visit=5)
    with pytest.raises(ValueError, match=r"15 of 15 .*media-prefix \(now 'clips/'\)"):
        _plan(cache, rows, stage=2, turns_per_visit=5, media_prefix="clips/", max_left_out_share=1.0)


def test_up_to_a_share_missing_videos_are_counted_and_listed(cache, annotations):
    rows = [*annotations, _question("videos/none.mp4", 1)]
    visits = _plan(cache, rows, stage=2, turns_per_visit=5, max_left_out_share=0.1)
    assert [(item.media_id, item.reason) for item in visits.left_out] == [("videos/none.mp4", "not in the cache")]
    assert len(visits) == len(annotations)


@pytest.mark.parametrize(
    ("stage", "row", "reason"),
    [
        (1, _question("videos/000.mp4", 1), "1 no caption"),
        (2, Annotation(media_id="videos/000.mp4", kind="video", caption="x"), "1 no question"),
    ],
)
def test_a_row_without_what_the_stage_learns_from_is_left_out(cache, stage, row, reason):
    with pytest.raises(ValueError, match=reason):
        _plan(cache, [row], stage=stage, turns_per_visit=5)


def test_a_prefix_makes_names_ids(cache, annotations):
    rows = [_question("000.mp4", 1)]
    visits = _plan(cache, rows, stage=2, turns_per_visit=5, media_prefix="videos/")
    assert visits.visits[0].key == cache.video_ids["videos/000.mp4"]


def test_disagreement_about_the_kind_is_an_error(cache):
    with pytest.raises(ValueError, match="annotated as image, but the cache holds video tokens"):
        _plan(cache, [_question("videos/000.mp4", 1, kind="image")], stage=2, turns_per_visit=5)
    rows = [_question("videos/000.mp4", 1), _question("videos/000.mp4", 1, kind="image")]
    with pytest.raises(ValueError, match="annotated both as video and as image"):
        _plan(cache, rows, stage=2, turns_per_visit=5)
    with pytest.raises(ValueError, match="no rows"):
        _plan(cache, [], stage=2, turns_per_visit=5)


def test_images_are_visits_of_stage_2(tmp_path):
    mixed = write_inputs(tmp_path, num_videos=3, num_images=2)
    rows = list(read_annotations([mixed.annotations], "linvt"))
    visits = _plan(read_cache(mixed.cache), rows, stage=2, turns_per_visit=5)
    assert sorted(zip(visits.lengths, visits.is_image)) == [(3, False), (4, False), (4, True), (4, True), (5, False)]
    batch = collate([visits.load(number) for number in range(5)], load_backbone(mixed.backbone, parts=("llm",)))
    assert batch.tokens.shape[:3] == (3, 5, TOKENS_PER_FRAME)
    assert len(batch.images) == 2

    first = _plan(read_cache(mixed.cache), rows, stage=1, turns_per_visit=5)
    assert len(first) == 3
    assert not first.is_image.any()
    assert {item.reason for item in first.left_out} == {"an image, in stage 1"}
    with pytest.raises(ValueError, match=r"2 of 2 annotated media cannot be trained on \(2 an image, in stage 1\)"):
        _plan(read_cache(mixed.cache), rows[3:], stage=1, turns_per_visit=5)


def test_frames_of_unlike_token_counts_are_refused(tmp_path):
    save_cache(tmp_path, {"a": torch.zeros(2, 4, 8), "b": torch.zeros(2, 6, 8)})
    with pytest.raises(ValueError, match=r"2 different token counts \(\[4, 6\]"):
        require_one_token_count(read_cache(str(tmp_path)))


def test_reading_ahead_keeps_the_order_and_goes_ahead_only_so_far():
    made: list[int] = []
    ahead = read_ahead(lambda n: made.append(n) or n * n, range(10), depth=3)
    assert next(ahead) == 0
    assert len(made) <= 4
    assert list(ahead) == [n * n for n in range(1, 10)]
    assert made == list(range(10))


def test_reading_ahead_raises_where_the_result_would_have_come():
    def make(number):
        if number == 2:
            raise OSError("the disk is gone")
        return number

    ahead = read_ahead(make, range(5), depth=4)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_closing_stops_the_thread():
    ahead = read_ahead(lambda n: n, range(1000), depth=2)
    next(ahead)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_a_name_without_extension_finds_its_video(cache):
    rows = [_question("videos/000.*", 1), _question("videos/001.mp4", 2)]
    visits = _plan(cache, rows, stage=2, turns_per_visit=5)
    assert [visit.key for visit in visits.visits] == [cache.video_ids[f"videos/00{i}.mp4"] for i in (0, 1)]


def test_rows_about_a_section_are_left_out_and_told(cache):
    turn = Turn(question="q", answer="a")
    section = Annotation(media_id="videos/000.mp4", kind="video", turns=(turn,), section_s=(0.0, 2.5))
    rows = [section, _question("videos/000.mp4", 1), _question("videos/001.mp4", 2)]
    visits = _plan(cache, rows, stage=2, turns_per_visit=5, max_left_out_share=0.5)
    assert [turn.question for visit in visits.visits for turn in visit.turns] == ["q1", "q2"]
    assert [(item.media_id, item.reason) for item in visits.left_out] == [("videos/000.mp4", "a section of a video")]
    with pytest.raises(ValueError, match=r"1 a section of a video"):
        _plan(cache, rows, stage=2, turns_per_visit=5)


def test_a_conversation_is_not_divided(cache):
    def row(media_id, *follows):
        turns = tuple(Turn(question=f"q{i}", answer="a", follows=f) for i, f in enumerate(follows))
        return Annotation(media_id=media_id, kind="video", turns=turns)

    rows = [row("videos/000.mp4", False, True, True, False, False), row("videos/000.mp4", False, True)]
    visits = _plan(cache, rows, stage=2, turns_per_visit=2)
    asked = [[(turn.question, turn.follows) for turn in visit.turns] for visit in visits.visits]
    assert asked == [
        [("q0", False), ("q1", True), ("q2", True)],
        [("q3", False), ("q4", False)],
        [("q0", False), ("q1", True)],
    ]


@pytest.fixture
def three_files(inputs, tmp_path):
    """Our own rows about all videos; conversations about three of them, below another root; captions of two."""
    conversation = [
        {"from": "human", "value": "<video>\nwhat color is the ball ?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "does it move ?"},
        {"from": "gpt", "value": "no"},
    ]
    rows = [{"video": f"{i:03d}.mp4", "conversations": conversation} for i in range(3)]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    table = "videoid,contentUrl,duration,page_dir,name\n" + "".join(f"{i:03d},u,PT1S,videos,a ball\n" for i in (0, 5))
    (tmp_path / "results_2M.csv").write_text(table)
    return (inputs.annotations, str(tmp_path / "chat.json"), str(tmp_path / "results_2M.csv"))


def test_files_of_several_formats_make_a_mixture(cache, inputs, three_files):
    sources = open_sources(
        three_files, formats=("linvt", "llava", "webvid"), weights=(1.0, 2.0, 0.5), media_prefixes=("", "videos/", "")
    )
    visits = plan_visits(cache, sources, stage=2, turns_per_visit=5, max_left_out_share=1.0)
    assert [(one["samples"], one["questions"], one["samples_per_epoch"]) for one in visits.mixture()] == [
        (14, 42, 14),
        (3, 6, 6),
        (0, 0, 0),
    ]
    assert visits.samples_per_epoch == 20
    # Questions about one video that come from two files are two visits, and each says where it is from.
    about_first = [visits.describe(number) for number in map(int, np.flatnonzero(visits.shards == visits.shards[0]))]
    about_first = [one for one in about_first if one["video_id"] == "videos/000.mp4"]
    assert [one["annotations"] for one in about_first] == [inputs.annotations, three_files[1]]
    assert about_first[1]["questions"] == ["what color is the ball ?", "does it move ?"]
    # WebVid's rows have no questions; they are told with their file.
    assert {(item.media_id, item.reason, item.file) for item in visits.left_out} == {
        (f"videos/{i:03d}.mp4", "no question", three_files[2]) for i in (0, 5)
    }
    sources = open_sources(three_files, formats=("auto",), weights=(), media_prefixes=("", "videos/", ""))
    with pytest.raises(ValueError, match=r"2 of 2 annotated media .*\(2 no question\).* in .*results_2M\.csv"):
        plan_visits(cache, sources, stage=2, turns_per_visit=5)

    first = plan_visits(
        cache,
        open_sources(three_files, formats=("auto",), weights=(), media_prefixes=("", "videos/", "")),
        stage=1,
        turns_per_visit=5,
        max_left_out_share=1.0,
    )
    assert [one["samples"] for one in first.mixture()] == [14, 0, 2]


def test_a_mixture_s_weights_belong_to_its_fingerprint(cache, three_files):
    def fingerprint(*weights):
        sources = open_sources(three_files[:2], formats=("auto",), weights=weights, media_prefixes=("", "videos/"))
        return plan_visits(cache, sources, stage=2, turns_per_visit=5).fingerprint

    assert fingerprint() == fingerprint(1.0) == fingerprint(1.0, 1.0)
    assert len({fingerprint(*weights) for weights in ((1.0, 1.0), (1.0, 2.0), (2.0, 1.0))}) == 3


def test_what_does_not_fit_the_files_is_told(inputs, three_files):
    def opened(files=three_files, formats=("auto",), weights=(), media_prefixes=("",)):
        return open_sources(files, formats=formats, weights=weights, media_prefixes=media_prefixes)

    with pytest.raises(ValueError, match="--format has 2 values for 3 annotation files; give one, or one each"):
        opened(formats=("linvt", "llava"))
    with pytest.raises(ValueError, match="--mixture-weights has 4 values"):
        opened(weights=(1.0,) * 4)
    with pytest.raises(ValueError, match="--media-prefix has 2 values"):
        opened(media_prefixes=("a", "b"))
    with pytest.raises(ValueError, match=r"named twice: .*to visit a file more often, give it a weight"):
        opened(files=(inputs.annotations, inputs.annotations))


def test_answers_beside_their_questions_are_no_source(cache, tmp_path):
    (tmp_path / "a_q.json").write_text(json.dumps([{"video_name": "x", "question": "q", "question_id": "1"}]))
    (tmp_path / "a_a.json").write_text(json.dumps([{"answer": "a", "type": 0, "question_id": "1"}]))
    (source,) = open_sources(
        (str(tmp_path / "a_a.json"), str(tmp_path / "a_q.json")),
        formats=("auto",),
        weights=(3.0, 2.0),
        media_prefixes=("",),
    )
    assert (source.name, source.weight) == (str(tmp_path / "a_q.json"), 2.0)


def test_samples_are_alike_in_what_they_are_grouped_by(cache):
    def row(number, length):
        return Annotation(
            media_id=f"videos/{number:03d}.mp4", kind="video", turns=(Turn(question="q", answer="a" * length),)
        )

    rows = [row(0, 9), row(3, 5), row(1, 2)]  # Of 3, 3 and 4 frames.
    keys = [visit.key for visit in _plan(cache, rows, stage=2, turns_per_visit=5).visits]
    order = {key: i for i, key in enumerate(keys)}
    short, long, longer = (order[cache.video_ids[f"videos/{i:03d}.mp4"]] for i in (3, 0, 1))
    by_frames, by_text, by_nothing = (
        _plan(cache, rows, stage=2, turns_per_visit=5, length_grouping=how).lengths
        for how in ("frames", "frames-text", "none")
    )
    assert by_frames[short] == by_frames[long] == by_frames[longer] - 1
    assert by_text[short] < by_text[long] < by_text[longer]
    assert len(set(by_nothing)) == 1
