# SPDX-License-Identifier: Apache-2.0
"""The engine of weft; private, see weft for the public API.

Arrays are C-contiguous and of exactly the dtype stated; `threads=0` chooses.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_Progress = Callable[[str, int, int], None]
