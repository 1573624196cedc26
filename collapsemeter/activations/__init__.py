"""Saved activations: read in chunks of bounded memory, and written for the audit."""

from __future__ import annotations

import os
from importlib import import_module

from .array_file import ActivationsError, Array, ArrayFile
from .foreign import explained
from .writer import Writer

# Ending -> module and class: a format's library is imported when a file of it is opened.
_OPENERS = {
    ".safetensors": ("safetensors_format", "SafetensorsFile"),
    ".npy": ("npy_format", "NpyFile"),
    ".npz": ("npz_format", "NpzFile"),
    ".zarr": ("zarr_format", "ZarrFolder"),
    ".h5": ("hdf5_format", "Hdf5File"),
    ".hdf5": ("hdf5_format", "Hdf5File"),
}


def open_arrays(path: str | os.PathLike[str], called: str | None = None) -> ArrayFile:
    """Open a file of arrays by its ending: .safetensors, .npy, .npz, .zarr, .h5 or .hdf5.

    Parameters
    ----------
    path : str or path
        For ``.zarr`` a folder, for all others a file.
    called : str, optional
        What messages call it, such as the URL that it was copied from.

    Returns
    -------
    ArrayFile
        A context manager with ``arrays``, ``refused`` and ``read(name, start, stop)``.

    Raises
    ------
    ActivationsError
        If it is damaged, hostile, or of another format; the message says which and how to convert it.
    FileNotFoundError
        If there is none.
    ImportError
        If the format's library is not installed; the message says how to install it.

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
    name = os.fspath(path).rstrip("/")
    found = _OPENERS.get(os.path.splitext(name)[1].lower())
    if found is None:
        os.stat(name)  # if there is nothing, that is what must be said
        raise ActivationsError(
            explained(name, called) or f"{called or name}: only {', '.join(_OPENERS)} are read"
        )
    module, reader = found
    try:
        opened: ArrayFile = getattr(import_module(f".{module}", __name__), reader)(name)
    except ActivationsError as error:
        what = explained(name, called)
        if what is None:
            raise
        raise ActivationsError(what) from error
    return opened


__all__ = ["ActivationsError", "Array", "ArrayFile", "Writer", "open_arrays"]
