import threading

import pytest
import torch

from linvt.annotations import Annotation, Turn, read_annotations
from linvt.backbones import load_backbone
from linvt.read_ahead import read_ahead
from linvt.shards import read_cache
from linvt.training.batches import CAPTION_INSTRUCTION, collate
from linvt.training.data import plan_visits, require_one_token_count
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


def test_stage_1_visits_captions(cache, annotations):
    visits = plan_visits(cache, annotations, stage=1, turns_per_visit=5)
    assert len(visits) == len(annotations) == len(cache)
    caption_of_key = {cache.video_ids[row.media_id]: row.caption for row in annotations}
    assert [visit.key for visit in visits.visits] == list(cache.keys)
    for visit in visits.visits:
        assert visit.caption == caption_of_key[visit.key]
        assert visit.turns == (Turn(question=CAPTION_INSTRUCTION, answer=visit.caption),)


def test_stage_2_visits_a_video_once_for_so_many_questions(cache, annotations):
    visits = plan_visits(cache, annotations, stage=2, turns_per_visit=2)
    assert [len(visit.turns) for visit in visits.visits] == [2, 1] * len(annotations)
    turns_of_key = {cache.video_ids[row.media_id]: row.turns for row in annotations}
    asked = [(visit.key, turn) for visit in visits.visits for turn in visit.turns]
    assert asked == [(key, turn) for key in cache.keys for turn in turns_of_key[key]]


def test_rows_about_one_video_are_taken_together(cache):
    rows = [_question("videos/000.mp4", 1), _question("videos/001.mp4", 2), _question("videos/000.mp4", 3)]
    visits = plan_visits(cache, rows, stage=2, turns_per_visit=5)
    asked = {visit.key: [turn.question for turn in visit.turns] for visit in visits.visits}
    assert asked == {cache.video_ids["videos/000.mp4"]: ["q1", "q3"], cache.video_ids["videos/001.mp4"]: ["q2"]}


def test_the_order_of_annotation_rows_does_not_matter(cache, annotations):
    forward = plan_visits(cache, annotations, stage=2, turns_per_visit=2)
    backward = plan_visits(cache, annotations[::-1], stage=2, turns_per_visit=2)
    assert forward.visits == backward.visits
    assert forward.fingerprint == backward.fingerprint
    assert forward.fingerprint != plan_visits(cache, annotations[1:], stage=2, turns_per_visit=2).fingerprint


def test_a_loaded_visit_has_the_tokens_of_the_cache(cache, annotations):
    visits = plan_visits(cache, annotations, stage=1, turns_per_visit=5)
    for number in (0, 7, len(visits) - 1):
        visit = visits.load(number)
        assert visit.video.key == visits.visits[number].key
        assert torch.equal(visit.video.tokens, cache.get(visits.visits[number].key).tokens)
        assert visits.lengths[number] == len(visit.video.tokens)
        assert visit.video.key in cache.shards[int(visits.shards[number])]


def test_a_missing_video_is_an_error_that_names_it(cache, annotations):
    rows = [*annotations, _question("videos/none.mp4", 1)]
    with pytest.raises(ValueError, match=r"1 of 15 annotated media.*\(1 not in the cache\).*videos/none\.mp4"):
        plan_visits(cache, rows, stage=2, turns_per_visit=5)
    with pytest.raises(ValueError, match=r"15 of 15 .*media-prefix \(now 'clips/'\)"):
        plan_visits(cache, rows, stage=2, turns_per_visit=5, media_prefix="clips/", max_left_out_share=1.0)


def test_up_to_a_share_missing_videos_are_counted_and_listed(cache, annotations):
    rows = [*annotations, _question("videos/none.mp4", 1)]
    visits = plan_visits(cache, rows, stage=2, turns_per_visit=5, max_left_out_share=0.1)
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
        plan_visits(cache, [row], stage=stage, turns_per_visit=5)


def test_a_prefix_makes_names_ids(cache, annotations):
    rows = [_question("000.mp4", 1)]
    visits = plan_visits(cache, rows, stage=2, turns_per_visit=5, media_prefix="videos/")
    assert visits.visits[0].key == cache.video_ids["videos/000.mp4"]


def test_disagreement_about_the_kind_is_an_error(cache):
    with pytest.raises(ValueError, match="annotated as image, but the cache holds video tokens"):
        plan_visits(cache, [_question("videos/000.mp4", 1, kind="image")], stage=2, turns_per_visit=5)
    rows = [_question("videos/000.mp4", 1), _question("videos/000.mp4", 1, kind="image")]
    with pytest.raises(ValueError, match="annotated both as video and as image"):
        plan_visits(cache, rows, stage=2, turns_per_visit=5)
    with pytest.raises(ValueError, match="no rows"):
        plan_visits(cache, [], stage=2, turns_per_visit=5)


def test_images_are_visits_of_stage_2(tmp_path):
    mixed = write_inputs(tmp_path, num_videos=3, num_images=2)
    rows = list(read_annotations([mixed.annotations], "linvt"))
    visits = plan_visits(read_cache(mixed.cache), rows, stage=2, turns_per_visit=5)
    assert sorted(zip(visits.lengths, visits.is_image)) == [(3, False), (4, False), (4, True), (4, True), (5, False)]
    batch = collate([visits.load(number) for number in range(5)], load_backbone(mixed.backbone, parts=("llm",)))
    assert batch.tokens.shape[:3] == (3, 5, TOKENS_PER_FRAME)
    assert len(batch.images) == 2

    first = plan_visits(read_cache(mixed.cache), rows, stage=1, turns_per_visit=5)
    assert len(first) == 3
    assert not first.is_image.any()
    assert {item.reason for item in first.left_out} == {"an image, in stage 1"}
    with pytest.raises(ValueError, match=r"2 of 2 annotated media cannot be trained on \(2 an image, in stage 1\)"):
        plan_visits(read_cache(mixed.cache), rows[3:], stage=1, turns_per_visit=5)


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
    visits = plan_visits(cache, rows, stage=2, turns_per_visit=5)
    assert [visit.key for visit in visits.visits] == [cache.video_ids[f"videos/00{i}.mp4"] for i in (0, 1)]


def test_rows_about_a_section_are_left_out_and_told(cache):
    turn = Turn(question="q", answer="a")
    section = Annotation(media_id="videos/000.mp4", kind="video", turns=(turn,), section_s=(0.0, 2.5))
    rows = [section, _question("videos/000.mp4", 1), _question("videos/001.mp4", 2)]
    visits = plan_visits(cache, rows, stage=2, turns_per_visit=5, max_left_out_share=0.5)
    assert [turn.question for visit in visits.visits for turn in visit.turns] == ["q1", "q2"]
    assert [(item.media_id, item.reason) for item in visits.left_out] == [("videos/000.mp4", "a section of a video")]
    with pytest.raises(ValueError, match=r"1 a section of a video"):
        plan_visits(cache, rows, stage=2, turns_per_visit=5)
