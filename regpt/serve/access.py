"""Who may ask the server, and what a browser may do with its answers.

A page of another site must not read the runs of somebody who visits it. Browsers send such a page's requests here if
its name is made to point to 127.0.0.1 (DNS rebinding), so the name in the Host header is checked. From another machine
only a request with the token is answered.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from regpt.serve.errors import ApiError, ErrorType

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 1_000_000
MOST_DISCARDED_BYTES = 64_000_000  # of a body that is too large, so that its sender can read the answer
SESSION_PATH = "/api/session"
PUBLIC_PATHS = ("/", "/health", SESSION_PATH)  # and /static/: the page itself shows nothing of a run
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
POLICY_HEADER = b"content-security-policy"
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-store",
}


@dataclass(frozen=True)
class Access:
    """Whom the server answers."""

    hosts: frozenset[str] | None = LOOPBACK_NAMES  # names that a request may use for this server; None: any
    token: str = ""  # that a request must have; empty: none

    @property
    def session(self) -> str:
        """The value of the cookie of a browser that has given the token."""
        return hmac.new(self.token.encode(), b"regpt session", hashlib.sha256).hexdigest()

    def has_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def cookie_name(port: int) -> str:
    """Return the name of the session's cookie. Browsers do not separate the cookies of two ports."""
    return f"regpt-session-{port}"


class AccessControl:
    """ASGI middleware: refuses what `Access` does not allow and large bodies, and adds the headers of safety.

    HEAD is answered as GET, without the body.
    """

    def __init__(self, app: App, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # a websocket: the server has none

        is_head = scope["method"] == "HEAD"
        scope = {**scope, "method": "GET"} if is_head else scope

        async def send_with_headers(message: Message) -> None:
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                own = dict(message.get("headers", ()))
                safe = {**HEADERS, POLICY_HEADER: PAGE_POLICY.encode()}
                message["headers"] = [*own.items(), *((k, v) for k, v in safe.items() if k not in own)]
            await send(message)

        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self.refusal(scope, headers)
        body = b""
        if refusal is None and scope["method"] != "GET":
            body, refusal = await read_body(receive)
            receive = replay(body, receive)
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
        else:
            await respond(refusal, send_with_headers)

    def refusal(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> ApiError | None:
        """Return why a request is not answered; None if it is."""
        host = headers.get("host", "")
        if self.access.hosts is not None and name_of(host) not in self.access.hosts:
            known = ", ".join(sorted(self.access.hosts))
            return ApiError(
                403, ErrorType.PERMISSION, "host_not_allowed", f"host '{host}' is not this server; use {known}"
            )
        origin = headers.get("origin")
        if origin is not None and scope["method"] != "GET" and urlsplit(origin).netloc != host:
            return ApiError(
                403, ErrorType.PERMISSION, "origin_not_allowed", f"requests from the site '{origin}' are refused"
            )
        path = scope["path"]
        if not self.access.token or path in PUBLIC_PATHS or path.startswith("/static/"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.access.has_token(given.strip()):
            return None
        if hmac.compare_digest(session_in(headers.get("cookie", ""), server_port(scope)), self.access.session):
            return None
        return ApiError(
            401, ErrorType.AUTHENTICATION, "invalid_token", "send the server's token: 'Authorization: Bearer TOKEN'"
        )


def name_of(host: str) -> str:
    """Return the name in a Host header without its port, in lower case."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and (port.isdecimal() or not port) and not name.endswith(":") else host.lower()


def server_port(scope: MutableMapping[str, Any]) -> int:
    return (scope.get("server") or ("", 0))[1] or 0


def session_in(cookies: str, port: int) -> str:
    """Return the session's cookie; empty without one."""
    try:
        found = SimpleCookie(cookies).get(cookie_name(port))
    except CookieError:
        return ""
    return found.value if found and found.value.isascii() else ""


async def read_body(receive: Receive) -> tuple[bytes, ApiError | None]:
    """Read the whole body. One that is too large is discarded; its sender then reads why."""
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= MOST_DISCARDED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        size += len(message.get("body", b""))
        parts = [*parts, message.get("body", b"")] if size <= MOST_BODY_BYTES else []
        more = message.get("more_body", False)
    if size > MOST_BODY_BYTES:
        text = f"the request is larger than {MOST_BODY_BYTES:,} bytes"
        return b"", ApiError(413, ErrorType.INVALID_REQUEST, "request_too_large", text)
    return b"".join(parts), None


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read before, then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


async def respond(error: ApiError, send: Send) -> None:
    """Send an error as the whole response."""
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
