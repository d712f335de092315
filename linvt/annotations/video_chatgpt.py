"""Video-ChatGPT's VideoInstruct-100K (https://github.com/mbzuai-oryx/Video-ChatGPT): a JSON list of single questions.

    {"q": "…", "a": "…", "video_id": "v_k_ZXmr8pmrs"}

Files are ActivityNet's, `v_<YouTube id>` with the extension that YouTube gave: mp4, mkv or webm.
"""

from linvt.annotations.fields import take_id, take_text
from linvt.annotations.format import Format, RawRow, has, reader
from linvt.annotations.rows import ANY_EXTENSION, Annotation, Turn


def parse_row(row: RawRow) -> Annotation:
    video = take_id(row, "video_id")
    turn = Turn(question=take_text(row, "q").strip(), answer=take_text(row, "a").strip())
    # All published ids begin with v_; ids without it are what others made of them.
    stem = video if video.startswith("v_") else f"v_{video}"
    return Annotation(media_id=stem + ANY_EXTENSION, kind="video", turns=(turn,))


VIDEO_CHATGPT = Format(recognises=has("q", "a", "video_id"), read=reader(parse_row))
