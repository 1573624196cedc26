"""Attributes by which netCDF and xarray say that stored numbers are not what is meant."""

import base64
import contextlib
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from .array_file import Refused

_REMEDY = "save what xarray.open_dataset or netCDF4 makes of it"


def check_unpacked(attribute: Callable[[str, float], Any], dtype: np.dtype[Any]) -> None:
    """Raise Refused if numbers are to be scaled or shifted, or if one of the floats stands for missing ones.

    ``attribute`` returns the value of a name, or what is passed beside it where there is none.
    """
    for name, neutral in (("scale_factor", 1.0), ("add_offset", 0.0)):
        for number in _numbers(attribute(name, neutral)):
            if number != neutral:
                raise Refused(f"is packed, with {name} {number:g}: {_REMEDY}")
    for name in ("_FillValue", "missing_value") if dtype.kind in "fV" else ():
        for number in _numbers(attribute(name, math.nan)):
            if not math.isnan(number):
                raise Refused(
                    f"may have missing values, for which {number:g} stands ({name}): {_REMEDY}, with NaN, "
                    "which leaves such rows out"
                )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str):  # xarray writes those of Zarr 3 as the bytes of a float64
        with contextlib.suppress(ValueError):
            stored = base64.b64decode(value, validate=True)
            if len(stored) == 8:
                return list(struct.unpack("<d", stored))
    return [float(number) for number in np.ravel(value)]
