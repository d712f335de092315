"""From questions and answers to token sequences: what stands around the visual tokens, and which of it is learned.

A question by itself is a sequence. A conversation of several turns is one sequence too, in which every answer is
labelled and nothing else; or, under `instruction = "each"`, as many sequences as it has answers.

Which question the video tokens are made under is a choice. They stand before the whole conversation, so whatever
conditions them can be read by every answer. "first" therefore takes the first question alone: a later one often says
what an earlier answer was ("what is he holding?" after "who comes in?"). "each" makes video tokens anew for each
question, as the served model does, for the price of a sequence a question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from linvt.annotations import Turn
from linvt.backbones import Backbone

IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceRules:
    """How conversations become sequences."""

    instruction: Literal["first", "each"] = "first"
    """Which question the video tokens of a conversation of several turns are made under."""
    max_answer_tokens: int | None = None
    """An answer with more tokens, the end of its turn counted, is cut to so many: its end goes first, so a model never
    learns to stop in the middle of a sentence. The turns behind a cut answer are dropped."""
    max_sequence_tokens: int | None = None
    """A sequence of more tokens, the visual ones counted, is cut to so many; whole turns behind the cut are dropped."""
    num_video_tokens: int | None = None
    """Visual tokens of a video; None: one a frame."""


DEFAULT_RULES = SequenceRules()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """The text around one visual slot. `labels` has one entry for each of `after`: IGNORE_INDEX or the id itself."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    labels: tuple[int, ...]
    instruction: str = ""
    """The question that the video tokens are made under."""
    num_cut: int = 0
    """Answers that the rules cut or dropped."""


def sequences_of(
    backbone: Backbone, conversation: Sequence[Turn], *, kind: str, num_visual: int, rules: SequenceRules
) -> list[TokenSequence]:
    """The sequences of one conversation about a video or an image that gives `num_visual` visual tokens.

    Raises ValueError where the rules leave no answer to learn, or the image-LLM's chat template has no second turn.
    """
    if rules.instruction == "first" or len(conversation) == 1:
        return [_sequence(backbone, conversation, kind, num_visual, rules, learned=range(len(conversation)))]
    found: list[TokenSequence] = []
    for i in range(len(conversation)):
        sequence = _sequence(backbone, conversation[: i + 1], kind, num_visual, rules, learned=range(i, i + 1))
        if i and all(label == IGNORE_INDEX for label in sequence.labels):
            # No room is left for this answer, nor for those behind it.
            dropped = len(conversation) - i
            return [*found[:-1], replace(found[-1], num_cut=found[-1].num_cut + dropped)]
        found.append(sequence)
    return found


def num_visual_tokens(rules: SequenceRules, *, kind: str, num_frames: int, tokens_per_frame: int) -> int:
    """The visual tokens that a video, or an image, brings into each of its sequences."""
    if kind == "image":
        return tokens_per_frame
    return num_frames if rules.num_video_tokens is None else rules.num_video_tokens


def has_room(backbone: Backbone, question: str, *, kind: str, num_visual: int, rules: SequenceRules) -> bool:
    """Whether at least one token of an answer fits behind a first question."""
    if rules.max_sequence_tokens is None:
        return True
    prompt = backbone.prompt(_asked(question, kind))
    return sum(map(len, prompt.segments)) + num_visual < rules.max_sequence_tokens


def _sequence(
    backbone: Backbone, turns: Sequence[Turn], kind: str, num_visual: int, rules: SequenceRules, *, learned: range
) -> TokenSequence:
    messages = _asked(turns[0].question, kind)
    prompt = backbone.prompt(messages)
    after, labels = list(prompt.after), [IGNORE_INDEX] * len(prompt.after)
    room = None
    if rules.max_sequence_tokens is not None:
        room = rules.max_sequence_tokens - num_visual - len(prompt.before)
    num_cut = 0
    for i, turn in enumerate(turns):
        length_before = len(after)
        if i:
            asked = backbone.question_ids(messages, turn.question)
            messages.append(_message("user", turn.question))
            after += asked
            labels += [IGNORE_INDEX] * len(asked)
        answer = backbone.answer_ids(messages, turn.answer)
        messages.append(_message("assistant", turn.answer))
        kept = answer[: rules.max_answer_tokens]
        if room is not None:
            kept = kept[: max(0, room - len(after))]
        after += kept
        labels += kept if i in learned else [IGNORE_INDEX] * len(kept)
        if len(kept) < len(answer):
            num_cut = sum(number >= i for number in learned)
            if i and not kept:
                del after[length_before:], labels[length_before:]
            break
    instruction = turns[learned[0]].question
    if learned[0] == 0 and all(label == IGNORE_INDEX for label in labels):
        raise ValueError(
            f"no token of an answer fits into --max-sequence-tokens {rules.max_sequence_tokens} behind {num_visual} "
            f"visual tokens and the question {instruction[:80]!r}"
        )
    return TokenSequence(
        before=prompt.before, after=tuple(after), labels=tuple(labels), instruction=instruction, num_cut=num_cut
    )


def _asked(question: str, kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": question}]}]


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
