"""Host memory that XLA:CPU uses in place, so that virtual devices share it."""

import numpy as np

ALIGNMENT = 64  # bytes, xla::cpu::MinAlign


def aligned(array: np.ndarray) -> np.ndarray:
    """`array` in memory that XLA can use in place.

    Read-only arrays that are contiguous and aligned to 64 bytes are returned as they are; others are copied, writable
    ones so that a later write can't reach the devices.
    """
    if not array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    buffer = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy
