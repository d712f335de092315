"""The closed vocabulary of the tiny world: every word of its questions, answers and captions, still and moving."""

from linvt.tiny.image_questions import NUMBERS, PLURALS
from linvt.tiny.scene import COLORS, NEEDLE_SHAPE, PLACES, SHAPES, SIZES

ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)
_IMAGE_WORDS = "what color shape size is the object objects how many are there where at a of above below yes no place"
_POSITION_WORDS = "top bottom left right center"
# Words of the video world are in the vocabulary of the image-LLM, as they would be in any real one's; it sees them
# only in its copying exercise, never with a picture.
_VIDEO_WORDS = (
    "which way does do move moves moved moving up down jump jumps jumped times time once twice in shot shots video "
    "scene cut comes come right after before first or become becomes became turn turns turned change changes changed "
    "appear appears appeared briefly that and then end beginning start grow grows shrink shrinks blink blinks "
    "with to from on it was were stays still still during long flash flashes whole see seen next previous "
    "happens happen happened describe watch picture image show shows shown who when why does into out"
)
_EXERCISE_WORDS = "repeat : . , ? ! ' - ; ( ) \" 0 1 2 3 4 5 6 7 8 9 10"

WORDS = tuple(
    dict.fromkeys(
        [
            *_EXERCISE_WORDS.split(),
            *_IMAGE_WORDS.split(),
            *_POSITION_WORDS.split(),
            *COLORS,
            *SHAPES,
            NEEDLE_SHAPE,
            *PLURALS.values(),
            *SIZES,
            *PLACES,
            *NUMBERS,
            *("nine", "ten", "eleven", "twelve"),
            *ORDINALS,
            "last",
            *_VIDEO_WORDS.split(),
        ]
    )
)
