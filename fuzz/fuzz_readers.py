"""Feed damaged files to the readers: `python fuzz/fuzz_readers.py FORMAT [options of libFuzzer]`.

FORMAT is npy, npz, safetensors, zarr, hdf5 or state. Anything but the one exception that a reader of
that format promises is a crash, and libFuzzer writes the input that led there to a file.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["collapsemeter", "numpy.lib", "json", "ast"]):
    import seeds

    from collapsemeter import ClassMoments, CorruptStateError
    from collapsemeter.activations import (
        ActivationsError,
        hdf5_format,
        npy_format,
        npz_format,
        open_arrays,
        safetensors_format,
        zarr_format,
    )

LATE = (hdf5_format, npy_format, npz_format, safetensors_format, zarr_format)
ENDINGS = {"npy": ".npy", "npz": ".npz", "safetensors": ".safetensors", "hdf5": ".h5"}
LARGEST = 2**16  # bytes of an input


def read_everything(path: Path) -> None:
    """Open a file and read all that is in it, in three chunks and beyond the end."""
    try:
        file = open_arrays(path)
    except ActivationsError as error:
        check_message(error, path)
        return
    with file:
        for name in [*file.arrays, *file.refused]:
            rows = file.arrays[name].shape[0] if name in file.arrays else 1
            try:
                for i in range(4):
                    file.read(name, i * rows // 3, (i + 1) * rows // 3)
            except ActivationsError as error:
                check_message(error, path)
        try:
            file.check()
        except ActivationsError as error:
            check_message(error, path)


def check_message(error: ValueError, path: Path) -> None:
    """Every message is one line that names the file."""
    assert str(path) in str(error), error
    assert len(str(error).splitlines()) == 1, error


def target(kind: str, folder: Path) -> Callable[[bytes], None]:
    """Return what libFuzzer calls with every input."""

    def one_file(data: bytes) -> None:
        path = folder / f"input{ENDINGS[kind]}"
        path.write_bytes(data)
        read_everything(path)

    def one_folder(data: bytes) -> None:
        path = folder / "input.zarr"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        seeds.unpack_folder(data, path)
        read_everything(path)

    def one_state(data: bytes) -> None:
        path = folder / "state"
        # With a right checksum: or nothing behind it would ever be reached.
        path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())
        try:
            ClassMoments.load(path)
        except CorruptStateError as error:
            check_message(error, path)

    if kind == "npz":  # nor behind the checksums of zip members
        zipfile.ZipExtFile._update_crc = lambda self, data: None
    return {"zarr": one_folder, "state": one_state}.get(kind, one_file)


def main() -> None:
    """Write the seeds and start libFuzzer."""
    kind, options = sys.argv[1], sys.argv[2:]
    warnings.simplefilter("error")  # a warning of a hostile file is noise for whoever reads it
    root = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    corpus, folder = root / "corpus", root / "work"
    corpus.mkdir()
    folder.mkdir()
    for i, data in enumerate(seeds.SEEDS[kind]()):
        (corpus / f"seed{i}").write_bytes(data)
    limits = [f"-max_len={LARGEST}", "-timeout=30", "-rss_limit_mb=512", "-len_control=0"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], target(kind, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
