"""Named arrays in a ``.safetensors`` file, memory-mapped by the safetensors library."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import ActivationsError, checked_array

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class SafetensorsFile:
    """The arrays of a ``.safetensors`` file; its header is checked by the library as it is opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError(
                f"reading {os.fspath(path)} needs safetensors: pip install 'collapsemeter[audit]'"
            ) from error
        self.path = os.fspath(path)
        self._error = SafetensorError
        if os.path.getsize(self.path) == 0:  # an empty file cannot be mapped
            raise ActivationsError(f"{self.path} is not a safetensors file: it is empty")
        try:
            self._file: Any = safe_open(self.path, framework="numpy").__enter__()
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ActivationsError(f"{self.path} is not a safetensors file: {error}") from error
        self._slices = slices
        self.arrays = {
            name: checked_array(self.path, name, tuple(part.get_shape()), self._dtype(name, part))
            for name, part in slices.items()
        }

    def _dtype(self, name: str, part: Any) -> np.dtype[Any]:
        stored = part.get_dtype()
        if stored not in _DTYPES:
            raise ActivationsError(
                f"{self.path}: array {name!r} has dtype {stored}, which is not read"
            )
        return np.dtype(_DTYPES[stored])

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows as a copy of that part of the file."""
        try:
            rows: npt.NDArray[Any] = self._slices[name][start:stop]
        except self._error as error:
            raise ActivationsError(
                f"{self.path}: array {name!r} cannot be read: {error}"
            ) from error
        return rows

    def check(self) -> None:
        """Do nothing: the format has no checksum; a manifest has one."""

    def close(self) -> None:
        """Let go of the file."""
        self._slices = {}
        self._file.__exit__(None, None, None)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
