"""The formats that are read, and how a file finds its reader."""

import os
from importlib import import_module

from .array_file import ActivationsError, ArrayFile
from .foreign import explained

# Ending -> module and class: a format's library is imported when a file of it is opened.
_READERS = {
    ".safetensors": ("safetensors_format", "SafetensorsFile"),
    ".npy": ("npy_format", "NpyFile"),
    ".npz": ("npz_format", "NpzFile"),
    ".zarr": ("zarr_format", "ZarrFolder"),
    ".h5": ("hdf5_format", "Hdf5File"),
    ".hdf5": ("hdf5_format", "Hdf5File"),
}
READ = tuple(_READERS)


def open_arrays(path: str | os.PathLike[str], called: str | None = None) -> ArrayFile:
    """Open a file of arrays by its ending: .safetensors, .npy, .npz, .zarr, .h5 or .hdf5.

    Parameters
    ----------
    path : str or path
        For ``.zarr`` a folder, for all others a file.
    called : str, optional
        The name in messages, such as the URL of which the file is a copy.

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
    ending = os.path.splitext(name)[1].lower()
    if ending not in _READERS:
        os.stat(name)  # a missing file must be called missing
        raise ActivationsError(
            explained(name, called) or f"{called or name}: only {', '.join(READ)} are read"
        )
    module, reader = _READERS[ending]
    try:
        opened: ArrayFile = getattr(import_module(f".{module}", __package__), reader)(name)
    except ActivationsError as error:
        what = explained(name, called)
        if what is None:
            raise
        raise ActivationsError(what) from error
    return opened
