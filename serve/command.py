"""What infer.py --serve does: opens the model, serves the page until Ctrl-C. Imports no torch: a missing package and a
port in use are said at once.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
from concurrent.futures import Future
from importlib.util import find_spec
from typing import TYPE_CHECKING

from solver.search.arguments import SearchOptions
from utils.errors import UserError
from utils.log import configure_logging

if TYPE_CHECKING:
    import uvicorn

    from serve.service import Service
    from serve.work import Worker

logger = logging.getLogger(__name__)

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
"""Module -> package."""
MOST_CONNECTIONS = 64
PATIENCE = 5
"""Seconds that open connections have when the server ends."""


def check_packages() -> None:
    """Raise UserError naming the packages of the page that are missing."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UserError(
            f"--serve needs {' and '.join(missing)}, not installed here: pip install -r requirements-serve.txt"
        )


def bound(host: str, port: int) -> socket.socket:
    """Return a socket at that address. Raises UserError for a port in use, and for a host that is not this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host}: no such address here ({error}); give 127.0.0.1 or an address of this machine"
        ) from error
    opened = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # where it would take the port away from who has it
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        # Two servers may bind one port as long as neither listens.
        opened.listen()
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port} of {host} is in use; end what uses it, or give another --port") from error
        raise UserError(f"--host {host} --port {port} cannot be served ({error.strerror}); give others") from error
    return opened


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def run_serve(options: SearchOptions) -> str:
    """Serve the page until it is stopped; return what is printed then. Raises UserError before the first request for
    whatever is wrong with model, gallery, address or packages, and when the gallery cannot be encoded.
    """
    configure_logging()
    check_packages()
    if options.gallery_instruction == "same":
        raise UserError(
            "--gallery-instruction same: the page has no query before it is served; make an index that is told it "
            "with python -m solver.gallery add --instruction, and serve that"
        )
    opened = bound(options.host, options.port)
    try:
        return _serve(options, opened)
    finally:
        opened.close()


def _serve(options: SearchOptions, opened: socket.socket) -> str:
    # They need the packages, and torch.
    from serve.service import GalleryChoice, Service, Stopped
    from serve.work import Worker
    from solver.commands.opening import ModelChoice
    from solver.search.session import SearchSession

    session = SearchSession.open(ModelChoice.of(options), options.gallery_cache)
    # Thresholds of another model are refused now and not at the first search.
    _ = session.calibration
    worker = Worker()
    gallery = GalleryChoice(
        place=options.gallery or options.gallery_index,
        modality=options.gallery_modality,
        told=options.gallery_instruction or "none",
        nprobe=options.nprobe,
    )
    service = Service(session=session, choice=gallery, stopping=worker.stopping)
    server = server_of(service, worker, options.host)
    prepared = worker.submit(service.prepare)
    prepared.add_done_callback(lambda future: _prepared(future, server))
    host, port = opened.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("the page: http://%s:%d/ (Ctrl-C ends it)", shown, port)
    if not is_loopback(host):
        logger.warning(
            "whoever reaches %s:%d can search and see the gallery: nobody is asked for a password", shown, port
        )
    try:
        # After a signal uvicorn has ended in order, and hands it on.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[opened])
    finally:
        worker.stop()
    error = None if prepared.cancelled() else prepared.exception()
    if error is not None and not isinstance(error, Stopped):
        raise error
    return "stopped"


def _prepared(future: Future[None], server: uvicorn.Server) -> None:
    """End the server where there is no gallery to serve."""
    if future.cancelled() or future.exception() is not None:
        server.should_exit = True
    else:
        logger.info("the gallery is ready")


def server_of(service: Service, worker: Worker, host: str) -> uvicorn.Server:
    """Return the server of the guarded application. host: as it was given, a name that is answered."""
    import uvicorn

    from serve.application import application
    from serve.guard import Guard

    names = {host, socket.gethostname()}
    return uvicorn.Server(
        uvicorn.Config(
            Guard(application(service, worker), names),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=PATIENCE,
        )
    )
