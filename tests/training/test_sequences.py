"""What of a conversation is learned, and under which question, on a real text tokenizer and chat template."""

import numpy as np
import pytest
import torch

from linvt.annotations import Turn
from linvt.backbones import load_backbone
from linvt.shards import CachedVideo
from linvt.training.batches import Visit, collate
from linvt.training.sequences import IGNORE_INDEX, SequenceRules, has_room, sequences_of

WHO = Turn(question="what color is the ball ?", answer="red")
WHERE = Turn(question="where is it ?", answer="at top left", follows=True)
HOW = Turn(question="does it move ?", answer="no", follows=True)
NUM_VISUAL = 5


@pytest.fixture(scope="module")
def backbone(inputs):
    return load_backbone(inputs.backbone, parts=("llm",))


def _learned(sequence):
    """The labelled stretches of a sequence, one an answer."""
    stretches, inside = [], False
    for label in sequence.labels:
        if label != IGNORE_INDEX and not inside:
            stretches.append([])
        inside = label != IGNORE_INDEX
        if inside:
            stretches[-1].append(label)
    return stretches


def _sequences(backbone, *turns, **rules):
    return sequences_of(backbone, turns, kind="video", num_visual=NUM_VISUAL, rules=SequenceRules(**rules))


def test_a_conversation_is_one_sequence_in_which_every_answer_is_learned(backbone):
    (sequence,) = _sequences(backbone, WHO, WHERE, HOW)
    assert sequence.instruction == WHO.question
    eos = backbone.stop_ids[0]
    assert _learned(sequence) == [[*backbone.text_ids(answer), eos] for answer in ("red", "at top left", "no")]
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(sequence.after, sequence.labels, strict=True))
    # It is what the served model reads when the last question is asked, and then the answer.
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": WHO.question}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": WHERE.question},
        {"role": "assistant", "content": "at top left"},
        {"role": "user", "content": HOW.question},
    ]
    prompt = backbone.prompt(messages)
    assert sequence.before == prompt.before
    assert sequence.after == (*prompt.after, *backbone.answer_ids(messages, "no"))


def test_each_question_may_have_a_sequence_and_video_tokens_of_its_own(backbone):
    sequences = _sequences(backbone, WHO, WHERE, HOW, instruction="each")
    assert [sequence.instruction for sequence in sequences] == [turn.question for turn in (WHO, WHERE, HOW)]
    (whole,) = _sequences(backbone, WHO, WHERE, HOW)
    for i, sequence in enumerate(sequences):
        assert sequence.after == whole.after[: len(sequence.after)]
        assert _learned(sequence) == _learned(whole)[i : i + 1]
    assert _sequences(backbone, WHO, instruction="each") == _sequences(backbone, WHO)


def test_a_long_answer_loses_its_end_and_what_follows_it(backbone):
    (whole,) = _sequences(backbone, WHO, WHERE, HOW)
    (cut,) = _sequences(backbone, WHO, WHERE, HOW, max_answer_tokens=2)
    assert _learned(cut) == [_learned(whole)[0], _learned(whole)[1][:2]]
    assert backbone.stop_ids[0] not in _learned(cut)[1]
    assert (whole.num_cut, cut.num_cut) == (0, 2)
    each = _sequences(backbone, WHO, WHERE, HOW, max_answer_tokens=2, instruction="each")
    assert [_learned(sequence) for sequence in each] == [[stretch] for stretch in _learned(cut)]
    assert sum(sequence.num_cut for sequence in each) == 2


def test_a_sequence_is_never_longer_than_said_and_never_without_an_answer(backbone):
    (whole,) = _sequences(backbone, WHO, WHERE, HOW)
    (first,) = _sequences(backbone, WHO)
    length = len(whole.before) + NUM_VISUAL + len(whole.after)
    shortest = len(first.before) + NUM_VISUAL + len(backbone.prompt([_asked(WHO)]).after) + 1
    for most in range(shortest, length + 2):
        for instruction in ("first", "each"):
            sequences = _sequences(backbone, WHO, WHERE, HOW, max_sequence_tokens=most, instruction=instruction)
            learned = [stretch for sequence in sequences for stretch in _learned(sequence)]
            for sequence in sequences:
                assert len(sequence.before) + NUM_VISUAL + len(sequence.after) <= most
                assert sequence.after == whole.after[: len(sequence.after)]
                assert sequence.labels[-1] != IGNORE_INDEX
            assert sum(s.num_cut for s in sequences) == 3 - sum(
                stretch == full for stretch, full in zip(learned, _learned(whole))
            )
    assert _learned(sequences[0]) == _learned(whole)[:1]
    rules = SequenceRules(max_sequence_tokens=shortest - 1)
    assert not has_room(backbone, WHO.question, kind="video", num_visual=NUM_VISUAL, rules=rules)
    with pytest.raises(ValueError, match="no token of an answer fits into --max-sequence-tokens"):
        sequences_of(backbone, [WHO], kind="video", num_visual=NUM_VISUAL, rules=rules)
    rules = SequenceRules(max_sequence_tokens=shortest)
    assert has_room(backbone, WHO.question, kind="video", num_visual=NUM_VISUAL, rules=rules)


def _asked(turn):
    return {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": turn.question}]}


def _video(seed, num_frames=3):
    return CachedVideo(
        key=f"{seed:032x}",
        video_id=f"{seed}.mp4",
        uri=f"{seed}.mp4",
        sha256="0" * 64,
        kind="video",
        tokens=torch.randn(num_frames, 4, 64, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16),
        grid=(2, 2),
        timestamps_s=np.arange(num_frames, dtype=np.float64),
        duration_s=float(num_frames),
        shots=np.array([[0.0, num_frames]]),
        shot_index=np.zeros(num_frames, np.int64),
        feature_id="f" * 64,
    )


def test_conversations_and_questions_by_themselves_share_a_visit(backbone):
    alone = Turn(question="is it red ?", answer="yes")
    visits = [Visit(video=_video(1), turns=(WHO, WHERE, alone)), Visit(video=_video(2), turns=(alone,))]
    batch = collate(visits, backbone)
    assert batch.media_index.tolist() == [0, 0, 1]
    assert [len(_learned(sequence)) for sequence in batch.sequences] == [2, 1, 1]
    decoded = [backbone.decode(ids[mask].tolist()) for ids, mask in zip(batch.instructions, batch.instruction_mask)]
    assert decoded == [WHO.question, alone.question, alone.question]
    # A question by itself is the same sequence, whatever else is asked in the visit.
    assert batch.sequences[1] == batch.sequences[2]
    each = collate(visits, backbone, SequenceRules(instruction="each"))
    assert each.media_index.tolist() == [0, 0, 0, 1]
    assert len(each.instructions) == each.num_video_sequences == 4
