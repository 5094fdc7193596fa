"""Host memory aligned so that XLA:CPU uses it in place and virtual devices share it."""

import numpy as np

ALIGNMENT = 64  # bytes, xla::cpu::MinAlign


def aligned(array: np.ndarray) -> np.ndarray:
    """Returns `array` in memory that XLA can use in place.

    Copies the array unless it is read-only, contiguous and aligned to 64 bytes. Writable arrays are always copied:
    devices that shared their memory would see later writes.
    """
    if not array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    buffer = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy
