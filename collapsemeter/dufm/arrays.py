"""The one array type of this package: float64."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""Every matrix here is float64: the quantities compared differ in the ninth digit."""
