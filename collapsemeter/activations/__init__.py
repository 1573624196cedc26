"""Saved activations: read in chunks of bounded memory, and written for the audit.

array_file          `ArrayFile`, which every format is, and the checks that all formats share
formats             `open_arrays`: the reader of a file, by its ending
npy_format, npz_format, safetensors_format, hdf5_format, zarr_format: one reader each
chunk_grid          arrays in compressed chunks, each checked before a library unpacks it (HDF5, Zarr)
packing             what netCDF and xarray say of numbers that are to be scaled, or that are missing
remote              globs and URLs, and the local copy of a remote file
foreign             files of other formats: what they are, by their content; foreign_kinds: the list of them
manifest, writer    the files of a dump, and `Writer`, which writes one
"""

from .array_file import ActivationsError, Array, ArrayFile
from .formats import open_arrays
from .writer import Writer

__all__ = ["ActivationsError", "Array", "ArrayFile", "Writer", "open_arrays"]
