"""NumPy's numbers and arrays in a pickle, rebuilt from their bytes alone: what stands for NumPy's own functions there.

Reports beside the weights (`'mAP': np.float64(0.44)`) then do not keep a checkpoint from being read.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_CODE = re.compile(r"[<>=|]?([biufcSU]\d{1,4})")
"""Numbers and texts; objects are refused."""


class _Kind:
    """Stands for numpy.dtype."""

    def __init__(self, code: str = "", *_: Any) -> None:
        if not isinstance(code, str) or not (found := _CODE.fullmatch(code)):
            raise pickle.UnpicklingError(f"a NumPy value of kind {code!r}")
        self._dtype = np.dtype(found[1])

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self._dtype = self._dtype.newbyteorder(state[1])

    def values(self, content: bytes, count: int) -> np.ndarray:
        """Return the first `count` values of the bytes."""
        if not isinstance(content, bytes) or len(content) != count * self._dtype.itemsize:
            raise pickle.UnpicklingError(f"{count} NumPy values of another size than stated")
        return np.frombuffer(content, self._dtype)


class _Array:
    """Stands for numpy.ndarray. values: the array once its state is known."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("a NumPy array of unknown form")
        self.values = kind.values(content, math.prod(shape)).reshape(shape, order="F" if fortran else "C")


def _number(kind: Any, content: Any) -> Any:
    if not isinstance(kind, _Kind):
        raise pickle.UnpicklingError("a NumPy value without its kind")
    return kind.values(content, 1)[0].item()


def _array(*_: Any) -> _Array:
    return _Array()


def _encoded(text: Any, encoding: Any) -> bytes:
    # Older protocols write bytes as a text of this encoding.
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes as {encoding!r}")
    return text.encode("latin1")


STAND_INS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "numpy.dtype": _Kind,
    "numpy.ndarray": _Array,
    **{f"numpy.{place}.multiarray.scalar": _number for place in ("core", "_core")},
    **{f"numpy.{place}.multiarray._reconstruct": _array for place in ("core", "_core")},
}
"""Name in a pickle -> what is called instead; nothing of NumPy's that a file names is."""
