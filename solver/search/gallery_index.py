"""Encoded galleries as files: features, and the version and content of every image that they were made of.

Shapes: G gallery images, N of them readable, D embed_dim.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.structures import Source
from utils.errors import UserError, first_line
from utils.files import atomic_path, fingerprint
from utils.foreign import DAMAGE_ERRORS
from utils.identical import content_digest, file_version

logger = logging.getLogger(__name__)

FORMAT_VERSION = 4
"""To be raised when the file's form, the reading of images or the normalisation changes. Features are kept as the
model gives them: which part of them is compared, and how, depends on the query.
"""

ABSENT = (-1, 0, 0, 0)
"""The version of a file that is empty or not there."""

Signature = list[Any]
"""[absolute path, size, inode, modification and change time in ns, SHA-256 of the content]; see ABSENT."""

SIGNED = [str, int, int, int, int, str]
"""Types of a signature."""


def sign(path: str) -> Signature:
    """Return the signature of a file, with its content's digest."""
    version = file_version(path)
    return [os.path.abspath(path), *(version or ABSENT), content_digest(path, version) if version else ""]


def _stat(path: str) -> Signature:
    return [os.path.abspath(path), *(file_version(path) or ABSENT)]


def keep_index(
    path: Path,
    identity: Mapping[str, Any],
    features: np.ndarray,
    failures: Mapping[int, str],
    signatures: list[Signature],
) -> bool:
    """Write features (N, D) and what they were made of, atomically; return whether that could be done. A search does
    not need the file.
    """
    header = {
        "identity": identity,
        "sum": _checksum(features),
        "files": signatures,
        "failures": [[index, reason] for index, reason in failures.items()],
    }
    packed = np.frombuffer(json.dumps(header).encode("ascii"), dtype=np.uint8)
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, features=features, header=packed)
    except UserError as error:
        logger.warning("the encoded gallery is not kept: %s; --gallery-cache DIR names another folder", error)
        return False
    return True


def _checksum(features: np.ndarray) -> str:
    return fingerprint(
        [features.dtype.str, features.shape, hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()]
    )


def read_index(
    path: Path, identity: Mapping[str, Any], sources: Sequence[Source], *, allow_failures: bool
) -> tuple[np.ndarray, dict[int, str]] | None:
    """Return (features (N, D), failures) of a file that fits this gallery, else None, saying why in the log.

    A file of another version counts as the same when its content's digest is; its new signature is then written back.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            features, header = archive["features"], json.loads(archive["header"].tobytes())
        failures = {int(index): str(reason) for index, reason in header["failures"]}
        files: list[Signature] = header["files"]
        if _checksum(features) != header["sum"] or any([*map(type, entry)] != SIGNED for entry in files):
            raise ValueError("its content is not what was written")
        fits = header["identity"] == json.loads(json.dumps(identity)) and len(features) + len(failures) == len(files)
    except DAMAGE_ERRORS as error:
        logger.warning("%s cannot be read (%s); the gallery is encoded again", path, first_line(error))
        return None
    if not fits or [signature[0] for signature in files] != [os.path.abspath(source.value) for source in sources]:
        logger.info("other images than those kept in %s; the gallery is encoded again", path)
        return None
    if failures and not allow_failures:
        return None
    current: list[Signature] = []
    for signature, source in zip(files, sources):
        refreshed = _refresh(signature, source.value)
        if refreshed is None:
            logger.info("%s has changed; the gallery is encoded again", source.value)
            return None
        current.append(refreshed)
    if current != files:
        keep_index(path, identity, features, failures, current)
    return features, failures


def _refresh(signature: Signature, path: str) -> Signature | None:
    """Return the signature of an unchanged file, None for a changed one."""
    if signature[:-1] == _stat(path):
        return signature
    current = sign(path)
    return current if current[-1] and current[-1] == signature[-1] else None
