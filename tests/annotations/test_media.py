import pytest

from linvt.annotations import AnyExtension, MediaFolder


def test_a_name_without_extension_finds_the_one_id_that_has_it():
    values = AnyExtension({"v_a.mp4": 1, "b/v_a.mkv": 2, "v_c.webm": 3, "v_c.mp4": 4, "folder": 5})
    assert [values[key] for key in ("v_a.*", "b/v_a.*", "v_a.mp4", "folder", "folder.*")] == [1, 2, 1, 5, 5]
    assert (values.get("v_b.*"), values.get("v_a"), "v_a.*" in values, len(values)) == (None, None, True, 5)
    with pytest.raises(ValueError, match=r"v_c\.\* may be any of \['v_c.webm', 'v_c.mp4'\]"):
        values["v_c.*"]


def test_a_folder_is_asked_for_files_and_for_folders_of_frames(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("v_a.mp4", "b/v_a.mkv", "v_c.webm", "v_c.mp4"):
        (tmp_path / name).touch()
    media = MediaFolder(tmp_path)
    assert [media.find(name) for name in ("v_a.*", "b/v_a.*", "v_a.mp4", "b", "v_b.*", "v_a", "no/v_a.*")] == [
        *("v_a.mp4", "b/v_a.mkv", "v_a.mp4", "b"),
        *(None, None, None),
    ]
    with pytest.raises(ValueError, match=r"v_c\.\* may be any of \['v_c.mp4', 'v_c.webm'\]"):
        media.find("v_c.*")
    with pytest.raises(ValueError, match="no such folder"):
        MediaFolder(tmp_path / "none")
