"""WebVid-2M and -10M (https://github.com/m-bain/webvid): a csv with one caption a row.

    videoid,contentUrl,duration,page_dir,name

The caption is `name`, the file `{page_dir}/{videoid}.mp4`, as the set's own download script lays them out below its
`videos` folder. Like that script, we leave out rows whose page_dir is missing (or a word that pandas takes for that).
"""

from linvt.annotations.fields import take_id, take_text
from linvt.annotations.format import Format, RawRow, has, reader
from linvt.annotations.rows import Annotation, LeftOut

_MISSING = frozenset({"", "nan", "null", "none", "na", "n/a"})


def parse_row(row: RawRow) -> Annotation:
    folder = take_text(row, "page_dir").strip()
    if folder.lower() in _MISSING:
        raise LeftOut("no page_dir, so no file")
    return Annotation(media_id=f"{folder}/{take_id(row, 'videoid')}.mp4", kind="video", caption=take_text(row, "name"))


WEBVID = Format(recognises=has("videoid", "page_dir", "name"), read=reader(parse_row))
