import pytest

from tests.s3_server import running_s3_server


@pytest.fixture(scope="module")
def s3():
    """An S3 server, to which s3:// leads in this process and in those that it starts."""
    with running_s3_server() as server:
        yield server
