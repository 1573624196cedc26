"""Saved activations: read in chunks of bounded memory, and written for the audit."""

from __future__ import annotations

import os

from .array_file import ActivationsError, Array, ArrayFile


def open_arrays(path: str | os.PathLike[str]) -> ArrayFile:
    """Open a file of arrays by its ending: .safetensors, .npy, .npz, .zarr, .h5 or .hdf5.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    ArrayFile
        A context manager with ``arrays`` and ``read(name, start, stop)``.

    Raises
    ------
    ActivationsError
        If it is damaged, hostile, or of another format.
    FileNotFoundError
        If there is none.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "fc.npy")
    >>> np.save(path, np.eye(3))
    >>> with open_arrays(path) as file:
    ...     print(file.arrays["fc"], file.read("fc", 0, 1))
    (3, 3) float64 [[1. 0. 0.]]
    """
    name = os.fspath(path)
    if name.endswith(".safetensors"):
        from .safetensors_format import SafetensorsFile

        return SafetensorsFile(path)
    if name.endswith(".npy"):
        from .npy_format import NpyFile

        return NpyFile(path)
    raise ActivationsError(f"{name}: only .safetensors, .npy, .npz, .zarr, .h5 and .hdf5 are read")


__all__ = ["ActivationsError", "Array", "ArrayFile", "open_arrays"]
