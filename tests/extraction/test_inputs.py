import json
import os
from hashlib import sha256

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from linvt.extraction.fetch import content_sha256
from linvt.extraction.inputs import list_inputs

MEDIA = ["a/b/c.webm", "a/pic.JPG", "a/z.MKV", "b.mp4", "e é.mp4"]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus [1]"
    for name in (
        "b.mp4",
        "a/z.MKV",
        "a/b/c.webm",
        "a/pic.JPG",
        "notes.txt",
        "a/.hidden.mp4",
        ".trash/x.mp4",
        "e é.mp4",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def _ids(inputs):
    return [media.video_id for media in inputs]


def test_a_folder_gives_its_media_by_relative_path_sorted(corpus):
    inputs = list_inputs(str(corpus))
    assert _ids(inputs) == MEDIA
    assert [media.uri for media in inputs] == [str(corpus / name) for name in MEDIA]
    assert [media.size_bytes for media in inputs] == [len(name.encode()) for name in MEDIA]
    assert list_inputs(f"{corpus}/") == inputs
    assert list_inputs(f"file://{corpus}") == inputs


def test_a_relative_folder_gives_absolute_uris(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    assert list_inputs(corpus.name) == list_inputs(str(corpus))


def test_a_glob_gives_paths_from_before_its_first_wildcard(corpus):
    plain = corpus.rename(corpus.with_name("plain"))
    assert _ids(list_inputs(f"{plain}/**/*.webm")) == ["a/b/c.webm"]
    assert _ids(list_inputs(f"{plain}/**")) == MEDIA
    assert _ids(list_inputs(f"{plain}/a/*")) == ["pic.JPG", "z.MKV"]
    assert _ids(list_inputs(f"{plain}/[bn]*")) == ["b.mp4"]


def test_one_file_is_its_name(corpus):
    assert _ids(list_inputs(str(corpus / "a/z.MKV"))) == ["z.MKV"]


def test_a_list_file_names_paths_relative_to_itself_absolute_and_missing(corpus, tmp_path):
    elsewhere = tmp_path / "other.bin"
    elsewhere.write_bytes(b"x")
    lines = [
        "# a comment",
        "b.mp4",
        "",
        "./a//z.MKV\r",
        "b.mp4",
        str(corpus / "a/b/c.webm"),
        str(elsewhere),
        "gone.mp4",
    ]
    (corpus / "list.txt").write_text("\ufeff" + "\n".join(lines))
    inputs = list_inputs(str(corpus / "list.txt"))
    assert _ids(inputs) == sorted(["b.mp4", "a/z.MKV", "a/b/c.webm", str(elsewhere), "gone.mp4"])
    assert {media.video_id: media.size_bytes for media in inputs}["gone.mp4"] is None
    in_folder = {media.video_id: media for media in list_inputs(str(corpus))}
    assert [media for media in inputs if media.video_id in in_folder] == [
        in_folder[name] for name in ("a/b/c.webm", "a/z.MKV", "b.mp4")
    ]


def test_media_root_moves_where_relative_paths_start(corpus, tmp_path):
    (tmp_path / "list.txt").write_text("z.MKV\npic.JPG\n")
    inputs = list_inputs(str(tmp_path / "list.txt"), media_root=str(corpus / "a"))
    assert [(media.video_id, media.uri) for media in inputs] == [
        ("pic.JPG", str(corpus / "a/pic.JPG")),
        ("z.MKV", str(corpus / "a/z.MKV")),
    ]


def test_an_annotation_file_gives_each_media_once(corpus):
    rows = [{"media": "b.mp4", "caption": "x\u2028y"}, {"media": "a/pic.JPG", "kind": "image"}, {"media": "b.mp4"}]
    path = corpus / "train.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    assert _ids(list_inputs(str(path))) == ["a/pic.JPG", "b.mp4"]
    path.write_text('{"media": "b.mp4"}\n{"video": "c.mp4"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:2: .*\"media\""):
        list_inputs(str(path))
    path.write_text('{"media": "b.mp4"}\n{"media"\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:2: not JSON"):
        list_inputs(str(path))


def test_any_fsspec_filesystem_can_be_listed():
    filesystem = MemoryFileSystem()
    for name in ("b.mp4", "a/c.webm", "x.txt"):
        filesystem.pipe(f"/inputs/{name}", b"12345")
    assert [(m.video_id, m.uri, m.size_bytes) for m in list_inputs("memory://inputs")] == [
        ("a/c.webm", "memory:///inputs/a/c.webm", 5),
        ("b.mp4", "memory:///inputs/b.mp4", 5),
    ]
    filesystem.pipe("/inputs/list.txt", b"a/c.webm\nmemory://inputs/b.mp4\n")
    assert _ids(list_inputs("memory://inputs/list.txt")) == ["a/c.webm", "b.mp4"]
    assert _ids(list_inputs("memory://inputs/**/*.webm")) == ["a/c.webm"]


@pytest.mark.parametrize("videos", ["nowhere", "*.mp4", "empty"])
def test_nothing_found_is_an_error_that_names_what_was_asked(tmp_path, videos):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"--videos .*{videos.replace('*', '.')}"):
        list_inputs(str(tmp_path / videos))


def test_two_files_under_one_id_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a/x.mp4\nx.mp4\n")
    # Relative to root a: x.mp4 twice, the same file, is fine; relative to b they differ.
    assert len(list_inputs(str(tmp_path / "list.txt"), media_root=str(tmp_path / "a"))) == 1
    assert len(list_inputs(str(tmp_path / "list.txt"), media_root=str(tmp_path / "b"))) == 2


def test_a_name_that_is_not_utf8_is_an_input_that_no_file_has(tmp_path):
    with open(os.fsencode(tmp_path) + b"/bad\xff.mp4", "wb"):
        pass
    [media] = list_inputs(str(tmp_path))
    assert media.video_id == r"bad\xff.mp4"
    assert not os.path.exists(media.uri)


def test_two_colons_in_a_name_mean_nothing(tmp_path):
    (tmp_path / "a::b").mkdir()
    for name in ("a", "a::b.mp4", "a::b/c::d.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "list.txt").write_text(f"a::b.mp4\n{tmp_path}/a::b/c::d.mp4\nfile://{tmp_path}/a::b/c::d.mp4\n")
    for videos in (str(tmp_path / "list.txt"), str(tmp_path), f"{tmp_path}/**/*.mp4"):
        inputs = list_inputs(videos)
        assert [(m.video_id, m.size_bytes) for m in inputs] == [("a::b.mp4", 8), ("a::b/c::d.mp4", 13)]
        assert [content_sha256(m.uri) for m in inputs] == [sha256(m.video_id.encode()).hexdigest() for m in inputs]
    assert _ids(list_inputs(str(tmp_path / "a::b"))) == ["c::d.mp4"]


def test_names_that_no_file_can_have_are_inputs_too(tmp_path):
    (tmp_path / "list.jsonl").write_text(r'{"media": "nul\u0000.mp4"}' + "\n" + r'{"media": "half \ud83d.mp4"}')
    assert [(m.video_id, m.size_bytes) for m in list_inputs(str(tmp_path / "list.jsonl"))] == [
        (r"half \ud83d.mp4", None),
        ("nul\0.mp4", None),
    ]


def test_links_to_nothing_are_inputs_too(tmp_path):
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    expected = [("gone.mp4", None, None), ("loop.mp4", None, None)]
    for videos in (str(tmp_path), f"{tmp_path}/*.mp4", f"{tmp_path}/**/*.mp4"):
        assert [(m.video_id, m.size_bytes, m.modified) for m in list_inputs(videos)] == expected


def test_links_are_followed_but_not_in_circles(tmp_path):
    disk = tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    (disk / "deep/x.mp4").write_bytes(b"123")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "file.mp4").symlink_to(disk / "deep/x.mp4")
    (corpus / "folder").symlink_to(disk)
    (disk / "deep/back").symlink_to(corpus)
    inputs = list_inputs(str(corpus))
    assert [(media.video_id, media.size_bytes) for media in inputs] == [("file.mp4", 3), ("folder/deep/x.mp4", 3)]
    assert list_inputs(f"{corpus}/**/*.mp4") == inputs
    assert _ids(list_inputs(f"{corpus}/*.mp4")) == ["file.mp4"]
    assert _ids(list_inputs(f"{corpus}/*/*/x.mp4")) == ["folder/deep/x.mp4"]


def test_a_change_behind_a_link_is_seen(tmp_path):
    file = tmp_path / "disk.mp4"
    file.write_bytes(b"123")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/x.mp4").symlink_to(file)
    before = list_inputs(str(tmp_path / "corpus"))
    os.utime(file, ns=(0, 1))
    assert list_inputs(str(tmp_path / "corpus")) != before
