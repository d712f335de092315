"""From a media URL in a request to a local file, or a refusal: `file://`, `data:` and `http(s)://`.

A server that opens URLs for strangers must not become their way into its own network. So:

- `file://` opens regular files below the allow-listed directories only, after symbolic links are resolved;
- `http(s)://` connects to global addresses only. Every redirect is resolved and checked again, and the connection goes
  to the very address that was checked, so a name that resolves differently a moment later gains nothing;
- every source is cut off at a number of bytes, and a download also at a number of seconds, from its name's resolution
  to its last byte;
- only containers that hold their own media are passed on: playlists (HLS, DASH, concat, SDP), which make a decoder open
  other files and addresses, are not.
"""

import asyncio
import base64
import hashlib
import ipaddress
import os
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from linvt.serving.errors import RequestError

_HEAD_BYTES = 189  # two sync bytes of an MPEG transport stream
_REDIRECTS = {301, 302, 303, 307, 308}
# Azure's metadata and DNS service answers on this address, which is globally routable by number.
_METADATA_ADDRESSES = {ipaddress.ip_address("168.63.129.16")}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaRules:
    """What a request may make the server read."""

    allowed_dirs: tuple[Path, ...] = ()
    """Directories below which `file://` may read. None by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts ("name" or "name:port") that `http(s)` may reach although their addresses are not global."""
    max_bytes: int = 256 * 1024**2
    """Largest video or image, in bytes."""
    fetch_timeout_s: float = 60.0
    """Longest time for one download, redirects included."""
    max_redirects: int = 5
    """Most redirects that one download may follow."""
    max_frames: int = 256
    """Most frames of a video that comes as frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalMedia:
    """A media file that passed the rules."""

    path: Path
    """Of a file, or of a folder with frames as numbered JPEG files."""
    sha256: str
    size_bytes: int
    container: str
    """As `container_of` names it, or `FRAMES`."""
    is_temporary: bool
    """Whether the path lies in the scratch folder; else it is the place that a `file://` URL named."""


async def fetch_media(url: str, rules: MediaRules, scratch_dir: Path) -> LocalMedia:
    """Brings the media behind `url` to a local file: in place for `file://`, else written below `scratch_dir`.

    Raises RequestError: 400 for a URL that is malformed or of an unsupported scheme, 403 for a place outside the rules,
    413 for too many bytes, 422 for media that is missing or not a self-contained container, 502 and 504 for a media
    server that fails or stalls.
    """
    scheme = url.split(":", 1)[0].lower()
    if scheme == "file":
        return await asyncio.to_thread(lambda: _describe(_local_file(url, rules), is_temporary=False))
    if scheme == "data":
        return await asyncio.to_thread(_data_url, url, rules, scratch_dir)
    if scheme in ("http", "https"):
        path = await _downloaded(url, rules, scratch_dir)
        return await asyncio.to_thread(_describe, path, is_temporary=True)
    raise RequestError(
        400,
        f"media URL scheme {scheme[:20]!r} is not supported; use http, https, data or file",
        code="bad_media_url",
    )


IMAGE_CONTAINERS = frozenset({"png", "jpeg", "webp"})
FRAMES = "frames"
"""The `container` of a video that came as JPEG frames."""


def container_of(head: bytes) -> str | None:
    """The self-contained media container that a file begins as (its first 189 bytes or more), or None.

    Playlists and anything else that names other files is None by design.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        return "avi" if head[8:12] == b"AVI " else "webp"
    starts = {
        b"\x1a\x45\xdf\xa3": "matroska",
        b"\x00\x00\x01\xba": "mpeg-ps",
        b"\x00\x00\x01\xb3": "mpeg-video",
        b"FLV\x01": "flv",
        b"OggS": "ogg",
        b"\x30\x26\xb2\x75": "asf",
        b"GIF8": "gif",
        b"\x89PNG": "png",
        b"\xff\xd8\xff": "jpeg",
    }
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return "mpeg-ts"
    return next((name for start, name in starts.items() if head.startswith(start)), None)


def is_public_address(address: str) -> bool:
    """Whether an IP address is globally routable: not private, loopback, link-local, metadata, reserved or multicast.

    IPv6 forms that carry an IPv4 address (mapped, 6to4, Teredo, NAT64) are judged by that address too.
    """
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    carried: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        carried = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip.ipv4_mapped is not None:
            return is_public_address(str(ip.ipv4_mapped))
    if any(inner is not None and not is_public_address(str(inner)) for inner in carried):
        return False
    return ip.is_global and not ip.is_multicast and ip not in _METADATA_ADDRESSES


def _local_file(url: str, rules: MediaRules) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise RequestError(400, "a file URL must be file:///absolute/path", code="bad_media_url")
    if not rules.allowed_dirs:
        raise RequestError(
            403, "file:// media is off: this server was started without --allowed-media-dir", code="media_not_allowed"
        )
    try:
        path = Path(os.fsdecode(unquote_to_bytes(parts.path))).resolve()
        # Judged before it is looked at, so that the answer tells nothing about files elsewhere.
        if not any(path.is_relative_to(allowed.resolve()) for allowed in rules.allowed_dirs):
            raise RequestError(
                403, "this file:// path is outside the server's allowed media directories", code="media_not_allowed"
            )
        status = path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # missing, unreadable, a NUL in the name, a loop of links
        raise RequestError(
            422, f"cannot open the media file: {type(error).__name__}", code="media_not_found"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(422, "the file:// path is not a regular file", code="media_not_found")
    if status.st_size > rules.max_bytes:
        raise _too_large(rules)
    return path


def _data_url(url: str, rules: MediaRules, scratch_dir: Path) -> LocalMedia:
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise RequestError(400, "a data URL must be data:<type>;base64,<data>", code="bad_media_url")
    if len(payload) * 3 // 4 > rules.max_bytes + 2:
        raise _too_large(rules)
    if header.removesuffix(";base64").lower() == "data:video/jpeg":
        return _frames(payload, rules, scratch_dir)
    with NamedTemporaryFile(dir=scratch_dir, delete=False) as file:
        file.write(_from_base64(payload))
    return _describe(Path(file.name), is_temporary=True)


def _frames(payload: str, rules: MediaRules, scratch_dir: Path) -> LocalMedia:
    """The frames of a video, base64 with commas between them, as a folder of JPEG files."""
    encoded = payload.split(",", rules.max_frames)
    if len(encoded) > rules.max_frames or "," in encoded[-1]:
        raise RequestError(400, f"this server takes at most {rules.max_frames} frames", code="too_many_frames")
    folder, hashed, size_bytes = Path(mkdtemp(dir=scratch_dir)), hashlib.sha256(), 0
    for number, one in enumerate(encoded):
        content = _from_base64(one)
        if container_of(content) != "jpeg":
            raise RequestError(
                422, f"frame {number} of a data:video/jpeg URL is not a JPEG file", code="media_not_decodable"
            )
        (folder / f"{number:06d}.jpg").write_bytes(content)
        hashed.update(hashlib.sha256(content).digest())
        size_bytes += len(content)
    return LocalMedia(
        path=folder, sha256=hashed.hexdigest(), size_bytes=size_bytes, container=FRAMES, is_temporary=True
    )


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's own error is one; so is that of a character beyond ASCII
        raise RequestError(400, f"the data URL is not valid base64: {error}", code="bad_media_url") from error


async def _downloaded(url: str, rules: MediaRules, scratch_dir: Path) -> Path:
    try:
        # Over all of it: a server that sends a byte now and then never runs into a timeout of one read.
        async with asyncio.timeout(rules.fetch_timeout_s):
            with NamedTemporaryFile(dir=scratch_dir, delete=False) as file:
                async for chunk in _download(url, rules):
                    file.write(chunk)
            return Path(file.name)
    except TimeoutError as error:
        raise RequestError(
            504, f"the media server took longer than {rules.fetch_timeout_s:g} s", code="media_fetch_timeout"
        ) from error


async def _download(url: str, rules: MediaRules) -> AsyncIterator[bytes]:
    """The body behind `url`, in chunks, every hop checked."""
    try:
        target = httpx.URL(url)
        # The environment's proxies are left out: a proxy resolves names itself, behind our back.
        async with httpx.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False, timeout=None) as client:
            for _ in range(rules.max_redirects + 1):
                request = await _pinned_request(client, target, rules)
                response = await client.send(request, stream=True)
                try:
                    if response.status_code not in _REDIRECTS:
                        async for chunk in _body(response, rules):
                            yield chunk
                        return
                    target = target.join(response.headers.get("location", ""))
                finally:
                    await response.aclose()
        raise RequestError(
            422, f"the media URL redirects more than {rules.max_redirects} times", code="media_not_found"
        )
    except httpx.InvalidURL as error:
        raise RequestError(400, f"the media URL is malformed: {error}", code="bad_media_url") from error
    except httpx.HTTPError as error:
        raise RequestError(
            502, f"the media server could not be read: {type(error).__name__}", code="media_fetch_failed"
        ) from error


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def _pinned_request(client: httpx.AsyncClient, url: httpx.URL, rules: MediaRules) -> httpx.Request:
    """A GET for `url` that connects to the address checked here; TLS still verifies the name."""
    if url.scheme not in ("http", "https") or not url.host:
        raise RequestError(400, f"the media URL leads to an unsupported URL ({url.scheme!r})", code="bad_media_url")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(422, "the media URL's host name does not resolve", code="media_not_found") from error
    addresses = [str(entry[4][0]) for entry in found]
    trusted = {url.host, f"{url.host}:{port}"} & set(rules.allowed_hosts)
    if not trusted and not all(is_public_address(address) for address in addresses):
        raise RequestError(
            403,
            "the media URL leads to a private, local or metadata address, which is refused",
            code="media_not_allowed",
        )
    return client.build_request(
        "GET",
        url.copy_with(host=addresses[0]),
        headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "linvt"},
        extensions={"sni_hostname": url.host},
    )


async def _body(response: httpx.Response, rules: MediaRules) -> AsyncIterator[bytes]:
    if response.status_code >= 500:
        raise RequestError(502, f"the media server answered {response.status_code}", code="media_fetch_failed")
    if response.status_code != 200:
        raise RequestError(422, f"the media server answered {response.status_code}", code="media_not_found")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(422, "the media server sent a compressed body, unasked", code="media_not_found")
    announced = response.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > rules.max_bytes:
        raise _too_large(rules)
    received_bytes = 0
    async for chunk in response.aiter_raw():
        received_bytes += len(chunk)
        if received_bytes > rules.max_bytes:
            raise _too_large(rules)
        yield chunk


def _describe(path: Path, *, is_temporary: bool) -> LocalMedia:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            container = container_of(file.read(_HEAD_BYTES))
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        # The clock of a file system is coarse: of one that has just been written, its times don't tell a next writing.
        has_settled = time.time_ns() - status.st_mtime_ns > 2 * 10**9
        sha256 = "" if container is None else (_known_sha256 if has_settled else _sha256)(path, identity)
    except OSError as error:
        raise RequestError(422, f"cannot read the media: {type(error).__name__}", code="media_not_found") from error
    if container is None:
        raise RequestError(
            422, "the media is not a video or image container that this server reads", code="media_not_decodable"
        )
    return LocalMedia(
        path=path, sha256=sha256, size_bytes=status.st_size, container=container, is_temporary=is_temporary
    )


def _sha256(path: Path, _: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_known_sha256 = lru_cache(maxsize=4096)(_sha256)
"""The same file, as long as it is unchanged, is read once for all questions about it."""


def _too_large(rules: MediaRules) -> RequestError:
    return RequestError(413, f"the media is larger than this server's {rules.max_bytes} bytes", code="media_too_large")
