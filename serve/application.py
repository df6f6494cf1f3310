"""The HTTP layer: which address answers what. Every error is one sentence as JSON, and no request ends the server."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from configs.vocabulary import Modality
from datasets.structures import Source
from serve.answers import TYPES, answer, examples, listed, state, written
from serve.asked import MOST_FIELDS, Upload, read_asked
from serve.guard import TooLarge
from serve.pictures import original, small, whole
from serve.service import Found, Service
from serve.table import Table
from serve.work import Busy, Worker
from utils.errors import UserError, first_line

logger = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("app", "answer", "dom")},
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("drawing", "pictures")},
}
"""Address -> file of the page and its type. Nothing else of the disk has an address."""
LOOK_AGAIN = 0.5
"""Seconds between two looks at whether who asked is still there."""
READERS = 2
"""Pictures that are made smaller at once."""
MOST_PART_BYTES = 1 << 20
"""Of a field that is no file."""
NEVER_STORED = {"cache-control": "no-store"}
"""Also of pictures: number 3 of the next gallery at this address is another one."""
BARE = {"content-security-policy": "default-src 'none'; sandbox"}
"""Of files that are not ours: should a browser take one for a page, it can do nothing."""

Result = TypeVar("Result")
Endpoint = Callable[[Request], Awaitable[Response]]


class NotFound(Exception):
    """There is no such thing. The message is one sentence."""


def answered(endpoint: Endpoint) -> Endpoint:
    """Turn every error of an endpoint into one sentence and the status that fits."""

    @functools.wraps(endpoint)
    async def safe(request: Request) -> Response:
        """Return what the endpoint answers, or the refusal."""
        try:
            return await endpoint(request)
        except UserError as error:
            return refusal(400, str(error))
        except NotFound as error:
            return refusal(404, str(error))
        except TooLarge as error:
            return refusal(413, str(error), close=True)
        except Busy as error:
            return refusal(503, str(error))
        except HTTPException as error:
            return refusal(error.status_code, str(error.detail))
        except ClientDisconnect:
            return refusal(400, "the request was given up")
        except Exception as error:
            logger.exception("%s failed", request.url.path)
            what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {first_line(error)}"
            return refusal(500, f"this is a defect of the program ({what}); the server's log has the details")

    return safe


def refusal(status: int, sentence: str, close: bool = False) -> Response:
    """Return an error."""
    headers = {
        **NEVER_STORED,
        **({"connection": "close"} if close else {}),
        **({"retry-after": "3"} if status == 503 else {}),
    }
    return JSONResponse({"error": sentence}, status, headers)


class Api:
    """The endpoints over one service."""

    def __init__(self, service: Service, worker: Worker) -> None:
        self.service = service
        self.worker = worker
        self.limiter = anyio.CapacityLimiter(READERS)

    def routes(self) -> list[Route]:
        """Return every address."""
        served = {
            "/api/state": ("GET", self.state),
            "/api/search": ("POST", self.search),
            "/api/examples": ("GET", self.examples),
            "/api/examples/{list:int}.{entry:int}/{part:int}": ("GET", self.example_picture),
            "/api/examples/{list:int}.{entry:int}/{part:int}/original": ("GET", self.whole_example),
            "/api/images/{number:int}": ("GET", self.small_picture),
            "/api/images/{number:int}/original": ("GET", self.whole_picture),
        }
        found = [Route(path, answered(call), methods=[method]) for path, (method, call) in served.items()]
        return [*found, *(Route(path, answered(self.page), methods=["GET"]) for path in FILES)]

    async def page(self, request: Request) -> Response:
        """The page's own files."""
        name, kind = FILES[request.url.path]
        return Response((STATIC / name).read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})

    async def state(self, request: Request) -> Response:
        """What the server has and how far it is."""
        return JSONResponse(state(self.service), headers=NEVER_STORED)

    async def search(self, request: Request) -> Response:
        """Search once; see serve.asked for the fields."""
        asked = read_asked([field async for field in fields_of(request)])
        self._ready()
        future = self.worker.submit(lambda: self._searched(asked.format, self.service.search(asked)))
        content, kind = await self._waited(future, request)
        headers = dict(NEVER_STORED)
        if asked.format in ("html", "png"):
            headers |= {"content-disposition": f'attachment; filename="retrieval.{asked.format}"', **BARE}
        return (
            JSONResponse(content, headers=headers)
            if kind is None
            else Response(content, media_type=kind, headers=headers)
        )

    def _searched(self, wanted: str, found: Found) -> tuple[Any, str | None]:
        """Return (document, None) or (bytes, their type)."""
        if wanted == "json":
            return answer(found, self._ready()), None
        return (listed(found), None) if wanted == "list" else (written(found), TYPES[wanted])

    async def examples(self, request: Request) -> Response:
        """Some queries of the test set, other ones for another seed."""
        self._ready()
        seed = request.query_params.get("seed", "0")
        if not re.fullmatch(r"[0-9]{1,9}", seed):
            raise UserError(f"seed {seed[:20]!r}: must be a whole number")
        found = self.service.examples
        assert found is not None, "they are there before the gallery"
        return JSONResponse(examples(found, self.service, int(seed)), headers=NEVER_STORED)

    async def example_picture(self, request: Request) -> Response:
        """A picture of an example, made smaller."""
        return await self._small(self._example(request))

    async def whole_example(self, request: Request) -> Response:
        """A picture of an example, as it is encoded."""
        source = self._example(request)
        content, kind = await self._read(lambda: whole(source))
        return Response(content, media_type=kind, headers={**NEVER_STORED, **BARE})

    def _example(self, request: Request) -> Source:
        self._ready()
        found, place = self.service.examples, request.path_params
        assert found is not None, "they are there before the gallery"
        try:
            return found.picture(place["list"], place["entry"], place["part"])
        except UserError as error:
            raise NotFound(str(error)) from error

    async def small_picture(self, request: Request) -> Response:
        """An image of the gallery, made smaller."""
        return await self._small(Source(modality=Modality.RGB, value=self._path(request)))

    async def whole_picture(self, request: Request) -> Response:
        """The file of an image of the gallery."""
        path = self._path(request)
        content, kind = await self._read(lambda: original(path))
        return Response(content, media_type=kind, headers={**NEVER_STORED, **BARE})

    def _path(self, request: Request) -> str:
        number = request.path_params["number"]
        image = self._ready().image(number)
        if image is None:
            raise NotFound(f"the gallery has no image {number}")
        return image.path

    async def _small(self, source: Source) -> Response:
        content = await self._read(lambda: small(source))
        return Response(content, media_type="image/jpeg", headers={**NEVER_STORED, **BARE})

    async def _read(self, read: Callable[[], Result]) -> Result:
        try:
            return await anyio.to_thread.run_sync(read, limiter=self.limiter)
        except UserError as error:
            raise NotFound(str(error)) from error

    def _ready(self) -> Table:
        table, progress = self.service.table, self.service.progress
        if table is None:
            done = f"{progress.done:,} of {progress.total:,} pictures" if progress.total else "it has just begun"
            raise Busy(f"the gallery is being encoded ({done}); ask again later, GET /api/state says how far it is")
        return table

    async def _waited(self, future: Future[Result], request: Request) -> Result:
        """Wait for a task, and drop it when nobody waits for it any more."""
        waiting = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait({waiting}, timeout=LOOK_AGAIN))[0]:
                if await request.is_disconnected():
                    future.cancel()
                    raise ClientDisconnect
            return waiting.result()
        except (CancelledError, asyncio.CancelledError) as error:
            future.cancel()
            if self.worker.stopping.is_set():
                raise Busy("the server is being stopped") from error
            raise


async def fields_of(request: Request) -> Any:
    """Yield (name, text or Upload) of a form in its order. Raises UserError for a body that is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise UserError("send a form (multipart/form-data), for instance with curl -F text='a red coat'")
    async with request.form(max_files=MOST_FIELDS, max_fields=MOST_FIELDS, max_part_size=MOST_PART_BYTES) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                yield name, Upload(name=value.filename or "", content=await value.read())
            else:
                yield name, value


async def nothing_here(request: Request, error: Exception) -> Response:
    """Answer for addresses and methods that there are none of."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is nothing at this address", 405: "this address takes another method"}
    return refusal(status, words.get(status, "this is a defect of the program; the server's log has the details"))


def application(service: Service, worker: Worker) -> Starlette:
    """Return the application, which the Guard stands before."""
    return Starlette(routes=Api(service, worker).routes(), exception_handlers={404: nothing_here, 405: nothing_here})
