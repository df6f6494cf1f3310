"""What stands before the application: who may ask, how much may be sent, and what every answer says to a browser.

A server on 127.0.0.1 is reached by every page that is open in a browser of the same machine. Two things keep them out:

- Host names. A page of evil.example can let its own name point to 127.0.0.1 (DNS rebinding) and would then read answers
  as its own. The browser still says `Host: evil.example`: only addresses, localhost, the machine's own name and the
  name that the server was told are answered.
- Origins. A page can send a form to http://127.0.0.1:7860 without reading the answer, and show pictures of it. Browsers
  say where a request comes from in `Origin` and `Sec-Fetch-Site`: other sites are refused. Programs such as curl say
  neither.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Of every answer. blob: = the previews of files that the user chose, which the page itself makes."""
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
METHODS = ("GET", "HEAD", "POST")
MOST_BYTES = 64 << 20
"""Of one request."""


class TooLarge(Exception):
    """A request has more bytes than are taken. The message is one sentence."""


def host_of(header: str) -> str:
    """Return the name or address in a Host header, in small letters, without its port and brackets; empty = none."""
    host, colon, port = header.strip().lower().rpartition(":")
    if not colon or not port.isdigit():
        host = header.strip().lower()
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    return host.rstrip(".")


def is_address(name: str) -> bool:
    """Return whether a host is an IP address, which no other site can make its own."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """The application behind these checks. hosts: names that are answered, besides addresses."""

    def __init__(self, application: Application, hosts: Collection[str], most_bytes: int = MOST_BYTES) -> None:
        self.application = application
        self.hosts = frozenset(name.lower().rstrip(".") for name in hosts) | {"localhost"}
        self.most_bytes = most_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # The server's own start and end; websockets are closed by the application, which has none.
            await self.application(scope, receive, send)
            return
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        refused = self._refused(scope, headers)
        if refused is not None:
            await _refuse(send, *refused)
            return
        await self.application(scope, self._counted(receive), _with_headers(send))

    def _refused(self, scope: Mapping[str, Any], headers: Mapping[str, list[str]]) -> tuple[int, str] | None:
        """Return (status, sentence) for a request that is not answered."""
        hosts = headers.get("host", [])
        host = host_of(hosts[0]) if len(hosts) == 1 else ""
        if not (host in self.hosts or is_address(host)):
            return 403, f"this server does not answer for the host {host[:100]!r}; start it with --host for that name"
        if scope["method"] not in METHODS:
            return 405, f"{scope['method']} is not answered here"
        origins = headers.get("origin", [])
        if any(origin.partition("://")[2].lower() != hosts[0].strip().lower() for origin in origins):
            return 403, "a page of another site asked, and is not answered"
        site, mode = headers.get("sec-fetch-site", ["none"])[0], headers.get("sec-fetch-mode", [""])[0]
        # A link from elsewhere to the page itself is no harm: it reads nothing, and the page asks by itself.
        opened = mode == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if site not in ("same-origin", "none") and not opened:
            return 403, "a page of another site asked, and is not answered"
        length = headers.get("content-length", ["0"])[0]
        if length.isdigit() and int(length) > self.most_bytes:
            return 413, self._limit
        return None

    @property
    def _limit(self) -> str:
        return f"a request may have {self.most_bytes >> 20} MiB; send fewer or smaller pictures"

    def _counted(self, receive: Receive) -> Receive:
        taken = 0

        async def counted() -> Message:
            """Return the next message, its bytes counted."""
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most_bytes:
                raise TooLarge(self._limit)
            return message

        return counted


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message.get("headers", [])}
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    fields += [(b"connection", b"close")] if status == 413 else []
    send = _with_headers(send)
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
