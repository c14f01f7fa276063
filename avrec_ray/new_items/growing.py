"""Arrays by row that go on growing."""

from typing import Any

import numpy as np
import numpy.typing as npt

_SPARE_ROWS = 256
_GROWTH = 0.25


class Growing:
    """An array that takes rows behind its last one, without a copy of the others each time."""

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        """Begins with `rows` [N, ...] themselves; what is written into them shows here."""
        self._buffer = rows if rows.flags.writeable else rows.copy()
        self._num_rows = len(rows)

    @property
    def rows(self) -> npt.NDArray[Any]:
        """[N, ...]; shares memory with what was returned before, as long as there was room."""
        return self._buffer[: self._num_rows]

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Further rows [M, ...]."""
        needed = self._num_rows + len(rows)
        if needed > len(self._buffer):
            larger = np.empty((needed + max(_SPARE_ROWS, int(_GROWTH * needed)), *rows.shape[1:]), self._buffer.dtype)
            larger[: self._num_rows] = self.rows
            self._buffer = larger
        self._buffer[self._num_rows : needed] = rows
        self._num_rows = needed
