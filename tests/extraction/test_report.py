"""The report of an extraction: what a reader needs from it, on real small extractions and on rows made by hand."""

import base64
import io
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from linvt.backbones import load_backbone
from linvt.extraction.assembly import assemble_shard
from linvt.extraction.decode import decode_input
from linvt.extraction.encode import encode_input
from linvt.extraction.existing import committed_shards, finish_extraction
from linvt.extraction.identity import Extraction, FeatureSpec
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import make_plan, write_plan
from linvt.extraction.reopening import reopen_shards
from linvt.extraction.report import write_report
from linvt.extraction.rows import VIDEOS_SCHEMA, VideoRow, rows_to_table
from linvt.extraction.spool import spooled_slots, write_spooled
from linvt.extraction.thumbnails import has_thumbnails, thumbnail_strip
from linvt.serving.encoding import DecodeOrder, decode
from linvt.shards.layout import EXTRACTION, rows_name, spool_name
from linvt.shards.storage import Storage, open_storage
from linvt.shots import load_detector
from tests.media import write_image, write_video
from tests.tiny_models import save_tiny_llava

SPEC = FeatureSpec(
    vision_fingerprint="v",
    max_side=128,
    max_candidates=64,
    cache_dtype="bf16",
    num_frames=12,
    detector="transnetv2",
    shot_threshold=0.5,
)
SAMPLES_PER_SHARD = 4
VOID = {"meta", "img"}

# Sorted, they are the slots from 0 on: shards of four.
SCRIPT = "<script>alert(1)</script>.mp4"
TURNING = "a\nb\u202e4pm.mp4"
BAD_IMAGE_TAG = "bad <img src=x onerror=alert(1)>.mp4"
BAD_LONG = "bad " + "x" * 240 + ".mp4"
HEBREW = 'שלום & "ab".mp4'
NAMES = (SCRIPT, TURNING, BAD_IMAGE_TAG, BAD_LONG, "c.mp4", "d.png", "e.mp4", HEBREW)


@dataclass
class Card:
    name: str = ""
    facts: str = ""
    paths: dict[str, str] = field(default_factory=dict)
    image: bytes | None = None


class Page(HTMLParser):
    """What a browser would find; asserts that every tag is closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.style = ""
        self.paragraphs: list[str] = []
        self.terms: list[list[str]] = []
        self.tables: list[list[list[str]]] = []
        self.cards: list[Card] = []
        self.feed(page)
        self.close()
        assert self.open == []

    @property
    def facts(self) -> dict[str, list[str]]:
        """Of the summary: name -> [value, note]."""
        return {term: values for term, *values in self.terms}

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        match tag:
            case "p":
                self.paragraphs.append("")
            case "dt":
                self.terms.append([""])
            case "dd":
                self.terms[-1].append("")
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "th" | "td":
                self.tables[-1][-1].append("")
            case "article":
                self.cards.append(Card())
            case "path":
                self.cards[-1].paths[dict(attrs)["class"]] = dict(attrs)["d"]
            case "img":
                kind, data = dict(attrs)["src"].split(",")
                assert kind == "data:image/jpeg;base64"
                self.cards[-1].image = base64.b64decode(data, validate=True)
            case "li":
                self.tables[-1][-1][-1] += "|"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        match [tag for tag in self.open if tag not in ("bdi", "small", "span", "ul", "li", "code", "a")]:
            case [*_, "style"]:
                self.style += data
            case [*_, "dl", "div", _]:
                self.terms[-1][-1] += data
            case [*_, "th" | "td"]:
                self.tables[-1][-1][-1] += data
            case [*_, "article", "h3"]:
                self.cards[-1].name += data
            case [*_, "article", "p"]:
                self.cards[-1].facts += data
            case [*_, "p"]:
                self.paragraphs[-1] += data


def _page(storage: Storage) -> Page:
    return Page(storage.read("report.html").decode())


def _report(folder: Path, rows: list[VideoRow]) -> Page:
    storage = open_storage(str(folder))
    with storage.open_atomic("videos.parquet") as file:
        pq.write_table(rows_to_table(rows), file, row_group_size=100)
    write_report(storage, num_shards=3, shard_bytes=5 * 2**20)
    return _page(storage)


def _row(slot: int, **facts) -> VideoRow:
    video = {"kind": "video", "duration_s": 10.0, "num_frames": 100, "width": 64, "height": 48, "codec": "h264"}
    return replace(VideoRow(slot=slot, shard=slot // 4, video_id=f"{slot}.mp4", uri="x"), **video | facts)


def _extract(storage: Storage, corpus: Path, backbone) -> None:
    plan = make_plan(list_inputs(str(corpus)), SAMPLES_PER_SHARD)
    asked = Extraction(
        feature=SPEC,
        samples_per_shard=SAMPLES_PER_SHARD,
        encode_batch_size=4,
        encode_dtype="float32",
        threads_per_worker=1,
    )
    storage.write(EXTRACTION, asked.to_json())
    write_plan(storage, plan)
    detector = load_detector("transnetv2")
    for planned in plan.rows:
        chosen = has_thumbnails(planned, SAMPLES_PER_SHARD)
        row, frames = decode_input(planned, detector, SPEC, thumbnails=chosen)
        info_json = tokens = None
        if frames is not None:
            row, info_json, tokens = encode_input(row, frames, backbone, SPEC, batch_size=4, device="cpu")
        write_spooled(storage, row, SPEC.feature_id, info_json, tokens)
    for planned in plan.shards.values():
        assemble_shard(storage, planned, plan.hashes[0], SPEC.feature_id)
    finish_extraction(storage, plan, committed_shards(storage, plan, SPEC.feature_id, contents=True))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_video(root / SCRIPT, shot_lengths=(20, 30, 14), size=(160, 96), seed=1)
    write_video(root / TURNING, shot_lengths=(9,), size=(48, 64), seed=2)
    (root / BAD_IMAGE_TAG).write_bytes(b"")
    (root / BAD_LONG).write_bytes(b"no video <b>at</b> all")
    write_video(root / "c.mp4", shot_lengths=(8, 8), seed=3)
    write_image(root / "d.png", seed=4)
    write_video(root / "e.mp4", shot_lengths=(8, 8), seed=5)
    write_video(root / HEBREW, shot_lengths=(8, 8), seed=6)
    return root


@pytest.fixture(scope="module")
def extracted(corpus, tmp_path_factory):
    torch.set_num_threads(1)
    backbone = load_backbone(str(save_tiny_llava(tmp_path_factory.mktemp("backbone"))), parts={"vision"})
    storage = open_storage(str(tmp_path_factory.mktemp("out")))
    _extract(storage, corpus, backbone)
    rows = pq.read_table(storage.path("videos.parquet")).to_pylist()
    assert tuple(row["video_id"] for row in rows) == NAMES
    return storage, rows


def test_the_summary_adds_up(extracted):
    storage, rows = extracted
    facts = _page(storage).facts
    good = [row for row in rows if row["status"] == "committed"]
    videos = [row for row in good if row["kind"] == "video"]
    assert facts["inputs"][0] == "8"
    assert facts["committed"] == ["6", "5 videos, 1 image"]
    assert facts["quarantined"] == ["2", "25.0% of the inputs"]
    assert facts["frames decoded"][0] == str(sum(row["num_frames"] for row in good)) == "122"
    kept = sum(len(row["kept_frames"]) for row in good)
    assert facts["frames kept"] == [str(kept), f"{100 * kept / 122:.1f}% of the decoded"]
    assert float(facts["shots per video"][0]) == pytest.approx(sum(len(row["shots"]) for row in videos) / 5, abs=0.005)
    assert facts["shots per video"][1] == "at most 3"
    assert facts["tokens"][0] == f"{64 * kept:,}"
    assert float(facts["video-hours"][0]) == pytest.approx(sum(row["duration_s"] for row in good) / 3600, rel=0.005)
    kibibytes, unit = facts["media read"][0].split()
    assert float(kibibytes) == pytest.approx(sum(row["size_bytes"] for row in good) / 1024, rel=0.005)
    assert unit == "KiB"
    tars = sum(storage.size_bytes(f"shards/{i:06d}.tar") or 0 for i in range(2)) / 1024
    assert facts["shards"] == ["2", f"{tars:,.0f} KiB"]


def test_the_times_are_sums_over_the_rows(extracted):
    storage, rows = extracted
    columns = {"fetch": "fetch_s", "decode": "decode_s", "shots": "shots_detection_s", "encode": "encode_s"}
    [header, *lines] = _page(storage).tables[0]
    assert header[0] == "stage"
    assert [line[0] for line in lines] == list(columns)
    for (_, seconds, _, _), column in zip(lines, columns.values()):
        assert float(seconds) == pytest.approx(sum(row[column] or 0.0 for row in rows), rel=0.005)


def test_rates_are_those_of_videos_and_shares_make_a_whole(tmp_path):
    rows = [
        _row(0, duration_s=3600.0, fetch_s=1.0, decode_s=360.0, shots_detection_s=30.0, encode_s=0.5),
        _row(1, duration_s=7200.0, fetch_s=2.0, decode_s=720.0, shots_detection_s=60.0, encode_s=1.0),
        # An image takes time and lasts none; a quarantined input took time in the stages that it passed.
        _row(2, kind="image", duration_s=0.0, num_frames=1, fetch_s=7.0, decode_s=9.0, encode_s=5.0),
        _row(3, duration_s=3600.0, fetch_s=1.0, decode_s=1440.0).quarantined("encode", "NonFiniteTokens", "x"),
        VideoRow(slot=4, shard=1, video_id="4.mp4", uri="x").quarantined("fetch", "FileNotFoundError", "x"),
    ]
    [_, *lines] = _report(tmp_path, rows).tables[0]
    assert [line[1] for line in lines] == ["11", "2,529", "90", "6.5"]
    assert [line[3] for line in lines] == ["3,600", "5.71", "120", "7,200"]
    assert sum(float(line[2].strip().rstrip("%")) for line in lines) == pytest.approx(100, abs=0.2)


def test_an_extraction_of_nothing_has_a_report(tmp_path):
    page = _report(tmp_path, [])
    assert page.facts["inputs"][0] == "0"
    assert page.facts["shots per video"][0] == "–"
    assert "Nothing was quarantined." in page.paragraphs
    assert page.cards == []


def test_rows_that_know_little_have_a_report(tmp_path):
    """As those of older caches; what they do not tell counts as nothing."""
    page = _report(tmp_path, [VideoRow(slot=0, shard=0, video_id="a", uri="x"), _row(1)])
    assert page.facts["committed"] == ["2", "1 video, 1 image"]
    assert page.facts["frames decoded"][0] == "100"
    assert page.facts["tokens"][0] == "0"


def test_hostile_names_and_messages_are_text(extracted):
    storage, rows = extracted
    text = storage.read("report.html").decode()
    page = Page(text)
    assert [card.name for card in page.cards] == [SCRIPT, r"a\nb\u202e4pm.mp4", "c.mp4", "d.png"]
    assert [line[0] for line in page.tables[-1][1:]] == [BAD_IMAGE_TAG, BAD_LONG]
    assert [line[3] for line in page.tables[-1][1:]] == [row["message"] for row in rows if row["message"]]
    assert not {"script", "b"} & page.tags
    assert [name for tag, name, _ in page.attributes if tag == "img"] == ["alt", "src"] * 4
    assert "\u202e" not in text
    assert "<script" not in text
    assert all(not name.startswith("on") for _, name, _ in page.attributes)


def test_foreign_text_is_cut_escaped_and_kept_in_its_place(tmp_path):
    message = "<!-- </td> \x00\x1b[31m\r\n\u2066\u2028\u0085 & &amp; \"'" + "é" * 500
    rows = [_row(0).quarantined("decode", "<i>Class</i>", message), replace(_row(1), video_id=HEBREW, codec="<u>")]
    page = _report(tmp_path, [rows[0], replace(rows[1], thumbnails=thumbnail_strip(np.zeros((1, 8, 8, 3), np.uint8)))])
    shown = page.tables[-1][1][3]
    assert shown.startswith(r"<!-- </td> \x00\x1b[31m\r\n\u2066\u2028\x85 & &amp; " + "\"'éé")
    assert shown.endswith(f"é… ({len(message) - 400} more characters)")
    assert shown.count("é") == 500 - (len(message) - 400)
    assert page.tables[-1][1][2] == "<i>Class</i>"
    assert "<u>" in page.cards[0].facts
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<bdi dir="ltr">שלום &amp; &quot;ab&quot;.mp4</bdi>' in text


def test_the_page_asks_for_nothing_else(extracted):
    page = _page(extracted[0])
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    anchors = {f"#{value}" for _, name, value in page.attributes if name == "id"}
    assert all(address.startswith("data:image/jpeg;base64,") or address in anchors for address in addresses)
    assert not {"script", "link", "iframe", "object"} & page.tags
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "prefers-color-scheme: dark" in page.style
    policies = [value for _, name, value in page.attributes if name == "content" and "default-src 'none'" in value]
    assert len(policies) == 1


def test_quarantine_is_counted_by_stage_and_class(tmp_path):
    rows = [_row(i).quarantined("decode", "InvalidDataError", "m") for i in range(5)]
    rows += [_row(5).quarantined("encode", "InvalidDataError", "m"), _row(6)]
    rows += [_row(7 + i).quarantined("open", "EmptyFile", "m") for i in range(7)]
    page = _report(tmp_path, rows)
    assert page.tables[1][1:] == [
        ["7", "open", "EmptyFile", "|7.mp4|8.mp4|9.mp4"],
        ["5", "decode", "InvalidDataError", "|0.mp4|1.mp4|2.mp4"],
        ["1", "encode", "InvalidDataError", "|5.mp4"],
    ]
    assert page.facts["quarantined"][0] == "13"
    assert [line[:3] for line in page.tables[2][1:]] == [
        [row.video_id, row.stage, row.error_class] for row in rows if row.status == "quarantined"
    ]
    assert not any("left out" in paragraph for paragraph in page.paragraphs)


def test_of_many_quarantined_inputs_the_first_are_shown_and_the_others_counted(tmp_path):
    rows = [_row(i).quarantined("open", "EmptyFile", "m") for i in range(2345)]
    page = _report(tmp_path, rows)
    assert [line[0] for line in page.tables[2][1:]] == [f"{i}.mp4" for i in range(1000)]
    assert page.tables[1][1][0] == "2,345"
    assert any("first 1,000 of 2,345; 1,345 are left out" in paragraph for paragraph in page.paragraphs)


def test_a_timeline_shows_shots_by_turns_and_kept_frames(tmp_path):
    strip = thumbnail_strip(np.zeros((1, 8, 8, 3), np.uint8))
    shots_s = [[0.0, 2.5], [2.5, 5.0], [6.0, 10.0]]
    [card] = _report(tmp_path, [_row(0, shots_s=shots_s, kept_timestamps_s=[0.0, 3.0, 9.5], thumbnails=strip)]).cards
    # 2000 steps for 10 s; from 5 s to 6 s a transition, which is in no shot.
    assert card.paths["even"] == "M0 0H500V18H0zM1200 0H2000V18H1200z"
    assert card.paths["odd"] == "M500 0H1000V18H500z"
    assert card.paths["tick"] == "M0 21V30M600 21V30M1900 21V30"
    assert card.facts == "10.0 s · 64×48 · h264 · 3 shots · 3 kept frames"


def test_a_timeline_of_countless_shots_stays_small(tmp_path):
    strip = thumbnail_strip(np.zeros((1, 8, 8, 3), np.uint8))
    times_s = np.linspace(0, 10, 100_001)
    shots_s = np.stack([times_s[:-1], times_s[1:]], axis=1).tolist()
    [card] = _report(tmp_path, [_row(0, shots_s=shots_s, kept_timestamps_s=times_s.tolist(), thumbnails=strip)]).cards
    assert (tmp_path / "report.html").stat().st_size < 150_000
    assert "100,000 shots" in card.facts


def test_the_gallery_shows_committed_inputs_with_thumbnails_up_to_its_size(tmp_path):
    strip = thumbnail_strip(np.zeros((1, 8, 8, 3), np.uint8))
    rows = [_row(i, thumbnails=None if i % 2 else strip) for i in range(200)]
    rows[2] = rows[2].quarantined("encode", "NonFiniteTokens", "m")
    cards = _report(tmp_path, rows).cards
    assert [card.name for card in cards] == [f"{i}.mp4" for i in range(0, 98, 2) if i != 2]
    assert len(cards) == 48


def test_thumbnails_are_small_pictures_of_kept_frames_at_the_chosen_slots_only(extracted):
    storage, rows = extracted
    # Positions 0 and 1 of the shards of four.
    assert {row["slot"] for row in rows if row["thumbnails"]} == {0, 1, 4, 5}
    sizes = []
    for row, card in zip([rows[slot] for slot in (0, 1, 4, 5)], _page(storage).cards):
        assert row["thumbnails"] == card.image
        with Image.open(io.BytesIO(row["thumbnails"])) as image:
            assert image.format == "JPEG"
            sizes.append(image.size)
    # 160×96 decoded at 128×77; 48×64 is not enlarged; an image is one picture.
    assert sizes == [(8 * 96, 58), (8 * 48, 64), (8 * 96, 64), (96, 64)]


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (3, [0, 1, 2]), (8, [*range(8)]), (16, [*range(1, 16, 2)])])
def test_a_strip_holds_frames_evenly_in_their_order(count, chosen):
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None] * 15 + np.zeros((1, 40, 30, 3), np.uint8)
    strip = thumbnail_strip(frames)
    assert strip == thumbnail_strip(frames.copy())
    pictures = np.asarray(Image.open(io.BytesIO(strip))).reshape(40, len(chosen), 30, 3)
    numbers = np.rint(pictures[5:35, :, 5:25].mean((0, 2, 3)) / 15)
    assert numbers.tolist() == chosen


def test_the_slot_alone_chooses_and_at_most_a_gallery_of_them(corpus):
    [media, *_] = list_inputs(str(corpus))
    medias = [replace(media, video_id=f"{i:05d}.mp4") for i in range(1000)]
    chosen = [row for row in make_plan(medias, 7).rows if has_thumbnails(row, 7)]
    assert Counter(row.shard for row in chosen) == {shard: 2 for shard in range(24)}
    assert all(row.slot - 7 * row.shard in (0, 1) for row in chosen)
    assert sum(has_thumbnails(row, 1) for row in make_plan(medias, 1).rows) == 24


def test_serving_makes_no_thumbnails(corpus, monkeypatch):
    monkeypatch.setattr("linvt.extraction.decode.thumbnail_strip", lambda _: pytest.fail("thumbnails were made"))
    row, frames = decode(DecodeOrder(kind="video", spec=SPEC, detector="none"), corpus / "e.mp4")
    assert frames is not None
    assert row.thumbnails is None


def test_equal_rows_give_equal_bytes_on_any_filesystem(extracted):
    storage, _ = extracted
    before = storage.read("report.html")
    size_bytes = sum(storage.size_bytes(f"shards/{i:06d}.tar") or 0 for i in range(2))
    write_report(storage, num_shards=2, shard_bytes=size_bytes)
    assert storage.read("report.html") == before
    elsewhere = open_storage("memory://reported")
    elsewhere.write("videos.parquet", storage.read("videos.parquet"))
    write_report(elsewhere, num_shards=2, shard_bytes=size_bytes)
    assert elsewhere.read("report.html") == before


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    def peak(row_groups: int) -> int:
        # Random times, or a file of any number of rows would be small.
        times_s = np.random.default_rng(0).random((1000, 64))
        table = rows_to_table([_row(i, kept_timestamps_s=times_s[i].tolist()) for i in range(1000)])
        path = tmp_path / f"{row_groups}"
        path.mkdir()
        with pq.ParquetWriter(path / "videos.parquet", VIDEOS_SCHEMA) as writer:
            for _ in range(row_groups):
                writer.write_table(table)
        # What is read of a file is Python's memory, what is made of it is Arrow's.
        usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(counted)
        tracemalloc.start()
        try:
            write_report(open_storage(str(path)), num_shards=1, shard_bytes=1)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(usual)
        assert _page(open_storage(str(path))).facts["inputs"][0] == f"{1000 * row_groups:,}"
        assert counted.max_memory() > 0
        return peak_bytes + counted.max_memory()

    peak(2)  # What is imported or cached once is in neither.
    assert peak(40) < 1.5 * peak(4)


def test_the_report_is_there_before_the_index(extracted, corpus, monkeypatch):
    storage, _ = extracted
    plan = make_plan(list_inputs(str(corpus)), SAMPLES_PER_SHARD)
    shards = committed_shards(storage, plan, SPEC.feature_id, contents=False)
    before = storage.read("report.html")
    storage.remove("report.html")
    seen = []
    monkeypatch.setattr("linvt.extraction.existing.write_index", lambda *_: seen.append(storage.read("report.html")))
    finish_extraction(storage, plan, shards)
    assert seen == [before]


def test_rows_of_before_there_were_thumbnails_are_taken_over_and_such_a_spool_is_not(extracted, corpus):
    """Committed work of an older version stays; what it had spooled is made again."""
    old, storage = extracted[0], open_storage("memory://older")
    for name in ("plan.parquet", *(f"shards/{name}" for name in old.names("shards"))):
        storage.write(name, old.read(name))
    for shard in range(2):
        table = pq.read_table(io.BytesIO(old.read(rows_name(shard)))).drop_columns("thumbnails")
        with storage.open_atomic(rows_name(shard)) as file:
            pq.write_table(table, file)
    plan = make_plan(list_inputs(str(corpus)), SAMPLES_PER_SHARD)
    finish_extraction(storage, plan, committed_shards(storage, plan, SPEC.feature_id, contents=True))
    assert _page(storage).cards == []
    assert reopen_shards(storage, plan, [0, 1], [6]) == {1}
    assert spooled_slots(storage, SPEC.feature_id) == {4, 5, 7}

    with pa.ipc.open_file(storage.read(spool_name(4))) as reader:
        table = reader.read_all().drop_columns("thumbnails")
    with storage.open_atomic(spool_name(4)) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert spooled_slots(storage, SPEC.feature_id) == {5, 7}
