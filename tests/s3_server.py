"""An S3 server in a process of its own: moto's, answering one request at a time, so that a conditional put is atomic.

It counts the requests, and misbehaves when told to (see `S3Server`): by the number of requests, never by chance.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import botocore.session
import pytest
from fsspec import AbstractFileSystem, filesystem

_CONTROL = "/_control"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Whatever is set up on this machine stays out of it.
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
_numbers = itertools.count()
FAULTS = ("error", "slow down", "reset", "truncate")


@dataclass(frozen=True, slots=True)
class S3Server:
    """What tests ask of the server."""

    endpoint: str

    def client(self, **options: Any) -> AbstractFileSystem:
        """An s3fs that shares nothing with the code under test."""
        return filesystem("s3", skip_instance_cache=True, use_listings_cache=False, **options)

    def inject_faults(self, *, every: int) -> None:
        """From now on each so-manieth request fails, in turn by each of FAULTS; every=0 ends it."""
        self._control({"every": every})

    def ignore_conditions(self, ignore: bool) -> None:
        """As stores do that never heard of If-Match and If-None-Match in a put."""
        self._control({"ignore_conditions": ignore})

    def refuse(self, pattern: str) -> None:
        """Permission denied for requests that match, such as "PUT /bucket/key"; none for ""."""
        self._control({"refuse": pattern})

    def hide(self, bucket: str, *, at: str = "") -> None:
        """The bucket vanishes, now or just before the first request that matches `at` ("PUT /bucket/key…")."""
        self._control({"hide": bucket, "at": at})

    def show(self) -> None:
        """What was hidden is there again."""
        self._control({"show": True})

    def require_credentials(self, required: bool) -> None:
        """Checks signatures and policies, which it does not by default."""
        self._control({"require_credentials": required})

    def user(self, *actions: str) -> dict[str, str]:
        """The environment of a new user who may do these actions ("s3:GetObject") and no others."""
        iam = botocore.session.get_session().create_client("iam")
        name = f"user{next(_numbers)}"
        iam.create_user(UserName=name)
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": [*actions], "Resource": "*"}],
        }
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def make_bucket(self) -> str:
        name = f"bucket{next(_numbers)}"
        self.client().mkdir(name)
        return name

    def requests(self) -> list[str]:
        """Such as "GET /bucket/key?query", since the last `forget_requests`, but for those that were made to fail."""
        return self._control({})["requests"]

    def forget_requests(self) -> None:
        self._control({"forget": True})

    def faults(self) -> list[str]:
        """ "truncate GET" and the like, since `inject_faults`."""
        return self._control({})["faults"]

    def _control(self, message: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.endpoint + _CONTROL, data=json.dumps(message).encode(), method="POST")
        return json.loads(_open(request))


def _open(request: urllib.request.Request) -> bytes:
    # Without the proxies that this machine may have set up.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return answer.read()


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """A server on a free port of this machine. The environment leads s3fs to it, here and in what is started here."""
    command = [sys.executable, "-m", "tests.s3_server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        # It listens before it tells its port.
        port = process.stdout.readline().strip()
        assert port, f"{command} ended with {process.wait()}"
        endpoint = f"http://127.0.0.1:{port}"
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
                patch.delenv(name, raising=False)
            for name, value in (_ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
                patch.setenv(name, value)
            # It remembers filesystems, and with them the endpoint of an earlier server.
            type(filesystem("s3")).clear_instance_cache()
            try:
                yield S3Server(endpoint)
            finally:
                type(filesystem("s3")).clear_instance_cache()


# -- the server's process ----------------------------------------------------------------------------------------------

_ERRORS = {
    "error": ("500 Internal Server Error", "InternalError"),
    "slow down": ("503 Service Unavailable", "SlowDown"),
    "refuse": ("403 Forbidden", "AccessDenied"),
}


class _Misbehaving:
    """A WSGI application around moto's."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._requests: list[str] = []
        self._faults: list[str] = []
        self._every, self._since_last_fault = 0, 0
        self._ignore_conditions, self._refuse = False, ""
        self._hide, self._hide_at = "", ""
        self._hidden: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _CONTROL:
            length = int(environ["CONTENT_LENGTH"])
            answer = json.dumps(self._obey(json.loads(environ["wsgi.input"].read(length)))).encode()
            start_response("200 OK", [("Content-Length", str(len(answer)))])
            return [answer]
        return self._answer(environ, start_response)

    def _obey(self, message: dict[str, Any]) -> dict[str, Any]:
        if "every" in message:
            self._every, self._since_last_fault = message["every"], 0
            self._faults.clear()
        if "hide" in message:
            self._hide, self._hide_at = message["hide"], message["at"]
            if not self._hide_at:
                self._take_away()
        if message.get("show"):
            for bucket, places in self._hidden.items():
                for where, what in zip(_bucket_places(), places):
                    where[bucket] = what
            self._hidden.clear()
        if message.get("forget"):
            self._requests.clear()
        if "require_credentials" in message:
            _require_credentials(message["require_credentials"])
        self._ignore_conditions = message.get("ignore_conditions", self._ignore_conditions)
        self._refuse = message.get("refuse", self._refuse)
        return {"requests": self._requests, "faults": self._faults}

    def _take_away(self) -> None:
        self._hidden[self._hide] = [where.pop(self._hide) for where in _bucket_places()]
        self._hide = ""

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}"
        if self._hide and re.match(self._hide_at, request):
            self._take_away()
        if self._ignore_conditions and environ["REQUEST_METHOD"] == "PUT":
            environ.pop("HTTP_IF_MATCH", None)
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if self._refuse and re.match(self._refuse, request):
            return self._fail("refuse", environ, start_response)
        self._since_last_fault += 1
        # Nothing but what a GET answers can be truncated, so that one waits for the next.
        kind = FAULTS[len(self._faults) % len(FAULTS)]
        is_due = self._every and self._since_last_fault >= self._every
        if not is_due or (kind == "truncate" and environ["REQUEST_METHOD"] != "GET"):
            self._requests.append(request)
            return self._application(environ, start_response)
        self._since_last_fault = 0
        self._faults.append(kind)
        return self._fail(kind, environ, start_response)

    def _fail(self, kind: str, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if kind == "truncate":
            # The headers promise all of it.
            body = b"".join(self._application(environ, start_response))
            return [body[: len(body) // 2]]
        if kind == "reset":
            raise ConnectionResetError("closed without an answer")
        status, code = _ERRORS[kind]
        body = f"<Error><Code>{code}</Code><Message>{kind}</Message></Error>".encode()
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def _bucket_places() -> tuple[dict[str, Any], dict[str, Any]]:
    """Where moto keeps its buckets, and whose they are."""
    from moto.backends import get_backend

    backends: Any = get_backend("s3")
    return backends["123456789012"]["aws"].buckets, backends.bucket_accounts


def _require_credentials(required: bool) -> None:
    from moto import settings
    from moto.core.authorization import ActionAuthenticatorMixin

    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if required else float("inf")
    ActionAuthenticatorMixin.request_count = 0


def _main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = _Misbehaving(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    # Until whoever started it ends, however that comes.
    sys.stdin.read()


if __name__ == "__main__":
    _main()
