"""Covers: serve/guard, serve/work. Who is answered, how much is taken, and the queue before the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from serve.guard import HEADERS, Guard, TooLarge, host_of, is_address
from serve.work import Busy, Worker


def ask(
    headers: Mapping[str, str],
    method: str = "GET",
    path: str = "/api/state",
    body: tuple[bytes, ...] = (b"",),
    most: int = 64,
) -> tuple[int, dict[str, str], list[str]]:
    """(status, headers, what the application behind the guard was told) of one request."""
    told: list[str] = []
    sent: list[Any] = []
    parts = iter(body)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        told.append(scope["path"])
        try:
            for _ in body:
                told.append((await receive())["body"].decode())
        except TooLarge as error:
            told.append(str(error))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"OWN")]})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(parts), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    asyncio.run(Guard(application, ["Box.Example."], most)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, told


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("localhost.:7860", 200),
        ("[::1]:7860", 200),
        ("[::1]", 200),
        ("192.168.1.20:7860", 200),
        ("box.example:7860", 200),
        ("evil.example", 403),
        ("evil.example:7860", 403),
        ("127.0.0.1.evil.example:7860", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("localhost:7860.evil.example", 403),
        ("evilbox.example", 403),
        ("", 403),
    ],
)
def test_only_known_names_are_answered(host: str, status: int) -> None:
    found, _, told = ask({"host": host})
    assert found == status and bool(told) == (status == 200)


def test_a_request_without_or_with_two_hosts_is_refused() -> None:
    assert ask({})[0] == 403
    assert ask({"host": "127.0.0.1", "Host": "127.0.0.1"})[0] == 403


HOST = "127.0.0.1:7860"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": f"http://{HOST}"}, 200),
        ({"origin": f"https://{HOST}"}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "http://localhost:7860"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"http://{HOST}.evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_other_sites_are_not_answered(headers: dict[str, str], status: int, method: str) -> None:
    assert ask({"host": HOST, **headers}, method)[0] == status


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else() -> None:
    link = {"host": HOST, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert ask(link, path="/")[0] == 200
    assert ask(link, "POST", "/")[0] == 403 and ask(link, path="/api/images/0")[0] == 403
    assert ask({**link, "sec-fetch-mode": "no-cors"}, path="/")[0] == 403
    assert ask({"host": HOST}, "DELETE")[0] == 405


def test_every_answer_has_the_headers_of_a_closed_page() -> None:
    for status, headers, _ in (ask({"host": HOST}), ask({"host": "evil.example"}), ask({"host": HOST}, "PUT")):
        own = {"x-frame-options": "OWN"} if status == 200 else {}
        assert {name: headers[name] for name in HEADERS} == {**HEADERS, **own}
    policy = dict(rule.strip().split(" ", 1) for rule in HEADERS["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in str(policy) and "*" not in str(policy) and "http" not in str(policy)


def test_too_large_bodies_are_refused_said_or_counted() -> None:
    assert ask({"host": HOST, "content-length": "65"}, "POST")[::2] == (413, [])
    assert ask({"host": HOST, "content-length": "64"}, "POST", body=(b"a" * 64,))[2] == ["/api/state", "a" * 64]
    # Without a length, or with a false one, the bytes are counted as they come.
    for extra in ({}, {"content-length": "3"}, {"content-length": "three"}):
        told = ask({"host": HOST, **extra}, "POST", body=(b"a" * 40, b"b" * 24, b"c"))[2]
        assert told[1:3] == ["a" * 40, "b" * 24] and "a request may have" in told[3]


def test_hosts_are_read_off_their_headers() -> None:
    headers = {"A.b:1": "a.b", "[::1]:2": "::1", "[fe80::1]": "fe80::1", " x ": "x", "a:b": "a:b", "": ""}
    assert {text: host_of(text) for text in headers} == headers
    assert is_address("10.0.0.1") and is_address("::1") and not is_address("1.2.3") and not is_address("0x7f.1")


def test_tasks_run_one_at_a_time_in_order_and_fail_alone() -> None:
    worker, running, order = Worker(most=4), threading.Lock(), []

    def task(number: int) -> int:
        assert running.acquire(blocking=False), "two tasks at once"
        order.append(number)
        running.release()
        if number == 1:
            raise RuntimeError("one")
        return number

    futures = [worker.submit(lambda number=number: task(number)) for number in range(4)]  # type: ignore[misc]
    assert [futures[number].result(5) for number in (0, 2, 3)] == [0, 2, 3] and order == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="one"):
        futures[1].result(5)
    worker.stop()


def test_a_full_queue_turns_away_and_a_stopped_one_drops_what_waits() -> None:
    worker, go, begun = Worker(most=2), threading.Event(), threading.Event()

    def first() -> bool:
        begun.set()
        return go.wait(10)

    running = worker.submit(first)
    assert begun.wait(5)
    waiting = worker.submit(lambda: "never")
    with pytest.raises(Busy, match="2 searches are waiting already; ask again"):
        worker.submit(lambda: None)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    assert worker.stopping.wait(5)
    go.set()
    stopper.join(5)
    assert running.result(5) is True and waiting.cancelled()
    with pytest.raises(Busy, match="being stopped"):
        worker.submit(lambda: None)
