"""Media on an S3 server: what is the media's fault, and what is the store's."""

import pytest

from linvt.extraction.decode_process import DecodeProcess
from linvt.extraction.existing import content_sha256
from linvt.extraction.fetch import local_copy
from linvt.extraction.reading import Unreadable
from linvt.storage_error import StorageError
from tests.media import write_video


@pytest.fixture
def bucket(s3, tmp_path):
    name = s3.make_bucket()
    s3.client().put_file(str(write_video(tmp_path / "a.mp4")), f"{name}/a.mp4")
    yield name
    s3.inject_faults(every=0)
    s3.require_credentials(False)
    s3.show()


def _read(uri: str) -> int:
    """In a process of its own, as an extraction does; gives the number of frames."""
    with DecodeProcess(stall_timeout_s=60, memory_mb=512) as read:
        chunks = read(uri, 48, 16)
        while True:
            try:
                next(chunks)
            except StopIteration as end:
                return end.value.info.num_frames


def test_a_missing_file_is_its_own_fault_and_a_missing_bucket_the_stores(s3, bucket):
    assert _read(f"s3://{bucket}/a.mp4") == 24
    with pytest.raises(Unreadable) as raised:
        _read(f"s3://{bucket}/gone.mp4")
    assert (raised.value.stage, raised.value.error_class) == ("fetch", "FileNotFoundError")
    s3.hide(bucket)
    with pytest.raises(StorageError, match=rf"^s3://{bucket}/a\.mp4: cannot be read: there is no such bucket; create"):
        _read(f"s3://{bucket}/a.mp4")


def test_credentials_that_are_refused_quarantine_nothing(s3, bucket):
    s3.require_credentials(True)
    with pytest.raises(StorageError, match=rf"^s3://{bucket}/a\.mp4: cannot be read: permission denied"):
        _read(f"s3://{bucket}/a.mp4")


def test_a_store_that_is_out_of_reach_is_not_the_medias_fault(bucket, monkeypatch):
    """Though its client keeps trying for longer than a decoder may be silent."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    with (
        DecodeProcess(stall_timeout_s=5, memory_mb=512) as read,
        pytest.raises(StorageError, match="EndpointConnectionError"),
    ):
        next(read(f"s3://{bucket}/a.mp4", 48, 16))


def test_truncated_answers_are_never_taken_for_the_whole_file(s3, bucket, tmp_path):
    data = (tmp_path / "a.mp4").read_bytes()
    s3.inject_faults(every=2)
    for _ in range(2):
        with local_copy(f"s3://{bucket}/a.mp4") as (path, sha256):
            assert path.read_bytes() == data
        assert content_sha256(f"s3://{bucket}/a.mp4") == sha256
    assert "truncate" in s3.faults()
