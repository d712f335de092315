"""The rules about what a request may make the server read, against real files and a real HTTP server."""

import asyncio
import base64
import gzip
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from linvt.serving.errors import RequestError
from linvt.serving.media import LocalMedia, MediaRules, container_of, fetch_media, is_public_address

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def server():
    """An HTTP server on loopback: `/image`, some misbehaviour, and redirects to `/redirect?<url>`."""
    stalled = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, target = self.path.partition("?")
            if path == "/redirect":
                self.send_response(302)
                self.send_header("Location", target)
                self.end_headers()
            elif path == "/stall":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(PNG[:20])
                self.wfile.flush()
                stalled.wait(20)
            elif path == "/gzip":
                self._answer(200, gzip.compress(PNG), ("Content-Encoding", "gzip"))
            elif path == "/unannounced":
                self._answer(200, PNG * 100, close=True)
            elif path == "/image":
                self.server.hosts.append(self.headers["Host"])
                self._answer(200, PNG)
            else:
                self._answer(int(path[1:]), b"no")

        def _answer(self, status, body, *headers, close=False):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if not close:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.hosts = []
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield http
        stalled.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def here(server):
    """(address of the server, rules that trust this one host and port)."""
    address = f"127.0.0.1:{server.server_port}"
    return address, MediaRules(allowed_hosts=(address,), max_bytes=2000, fetch_timeout_s=5)


def fetch(url: str, rules: MediaRules, scratch: Path) -> LocalMedia:
    return asyncio.run(fetch_media(url, rules, scratch))


def refused(url: str, rules: MediaRules, scratch: Path) -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetch(url, rules, scratch)
    return caught.value


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # AWS, GCP, Azure metadata
        "100.100.100.200",  # Alibaba metadata, carrier-grade NAT
        "168.63.129.16",  # Azure's wire server
        "0.0.0.0",
        "224.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1%eth0",
        "fd00:ec2::254",  # AWS metadata over IPv6
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address):
    assert is_public_address(address)


def test_file_below_an_allowed_directory(tmp_path):
    media = tmp_path / "media"
    (media / "a b").mkdir(parents=True)
    path = media / "a b" / "ü.png"
    path.write_bytes(PNG)
    found = fetch(path.as_uri(), MediaRules(allowed_dirs=(media,)), tmp_path)
    assert (found.path, found.sha256, found.size_bytes) == (path, hashlib.sha256(PNG).hexdigest(), len(PNG))


def test_files_elsewhere_are_refused_and_not_told_apart(tmp_path):
    media, scratch = tmp_path / "media", tmp_path / "scratch"
    media.mkdir()
    scratch.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    (media / "link.png").symlink_to(secret)
    rules = MediaRules(allowed_dirs=(media,))
    urls = [
        secret.as_uri(),
        f"file://{media}/../secret.png",
        f"file://{media}/%2e%2e/secret.png",
        f"file://{media}/link.png",
        f"file://{tmp_path}/media2/x.png",
        f"file://{tmp_path}/missing.png",
        "file:///etc/passwd",
    ]
    answers = {str(refused(url, rules, scratch)) for url in urls}
    assert len(answers) == 1
    assert answers.pop().startswith("403 media_not_allowed")


def test_nothing_local_is_allowed_by_default(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    error = refused(path.as_uri(), MediaRules(), tmp_path / "..")
    assert error.status == 403
    assert "--allowed-media-dir" in error.message


def test_a_pipe_a_directory_and_a_missing_file_do_not_hang_or_crash(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    rules = MediaRules(allowed_dirs=(tmp_path,))
    for name in ("pipe", "", "missing.mp4", "nul%00.mp4", "x" * 300):
        assert refused(f"file://{tmp_path}/{name}", rules, tmp_path).status == 422


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a.mp4", "a.mp4", "", "gopher://x", "file://host/a.mp4", "file:relative", "concat:a|b"]
)
def test_other_urls_are_refused(url, tmp_path):
    error = refused(url, MediaRules(allowed_dirs=(tmp_path,)), tmp_path)
    assert (error.status, error.code) == (400, "bad_media_url")


def test_data_url(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    found = fetch(url, MediaRules(), tmp_path)
    assert found.path.read_bytes() == PNG
    assert found.path.parent == tmp_path


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:image/png;base64,@@@@", 400),
        ("data:image/png,plain", 400),
        ("data:image/png;base64", 400),
        ("data:image/png;base64,", 422),
        ("data:video/mp4;base64," + "AAAA" * 1000, 413),
    ],
)
def test_bad_data_urls(url, status, tmp_path):
    assert refused(url, MediaRules(max_bytes=2000), tmp_path).status == status


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "ffconcat version 1.0\nfile /etc/passwd\n",
        "<?xml version='1.0'?><MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'/>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "[playlist]\nFile1=/etc/passwd",
    ],
)
def test_playlists_never_reach_a_decoder(text, tmp_path):
    (tmp_path / "movie.mp4").write_text(text)
    error = refused((tmp_path / "movie.mp4").as_uri(), MediaRules(allowed_dirs=(tmp_path,)), tmp_path)
    assert (error.status, error.code) == (422, "media_not_decodable")


@pytest.mark.skipif("LINVT_SHARED" not in os.environ, reason="LINVT_SHARED does not name the folder of real footage")
def test_containers_of_real_footage():
    for path in Path(os.environ["LINVT_SHARED"], "videos").iterdir():
        if path.suffix != ".json":
            expected = {".avi": "avi", ".mp4": "mp4", ".webm": "matroska", ".mkv": "matroska"}[path.suffix]
            assert container_of(path.read_bytes()[:189]) == expected


def test_download(here, server, tmp_path):
    address, rules = here
    found = fetch(f"http://{address}/image", rules, tmp_path)
    assert found.sha256 == hashlib.sha256(PNG).hexdigest()
    assert server.hosts[-1] == address


def test_redirects_are_followed_within_the_rules(here, tmp_path):
    address, rules = here
    assert fetch(f"http://{address}/redirect?/image", rules, tmp_path).size_bytes == len(PNG)


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:1/x",
        "http://localhost:1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://2130706433/x",  # 127.0.0.1 as one number
    ],
)
def test_every_redirect_is_checked(here, tmp_path, target):
    address, rules = here
    for url in (target, f"http://{address}/redirect?{target}"):
        error = refused(url, rules, tmp_path)
        assert (error.status, error.code) == (403, "media_not_allowed")


def test_redirects_to_other_schemes_and_in_circles(here, tmp_path):
    address, rules = here
    assert refused(f"http://{address}/redirect?file:///etc/passwd", rules, tmp_path).status == 400
    assert "redirects more than" in refused(f"http://{address}/redirect?/redirect", rules, tmp_path).message


@pytest.mark.parametrize(
    ("path", "status"), [("404", 422), ("403", 422), ("204", 422), ("503", 502), ("gzip", 422), ("unannounced", 413)]
)
def test_what_a_media_server_may_do_wrong(here, tmp_path, path, status):
    address, rules = here
    assert refused(f"http://{address}/{path}", rules, tmp_path).status == status


def test_a_media_server_that_stalls(here, tmp_path):
    address, _ = here
    rules = MediaRules(allowed_hosts=(address,), fetch_timeout_s=0.5)
    assert refused(f"http://{address}/stall", rules, tmp_path).status == 504


def test_nobody_listens(tmp_path):
    rules = MediaRules(allowed_hosts=("127.0.0.1",), fetch_timeout_s=5)
    assert refused("http://127.0.0.1:1/x", rules, tmp_path).status == 502


@pytest.mark.parametrize("url", ["http://", "http:///x", "https://[::1/x", "http://[zz]/x"])
def test_malformed_http_urls(url, tmp_path):
    assert refused(url, MediaRules(), tmp_path).status == 400
