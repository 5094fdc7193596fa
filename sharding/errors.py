"""Errors that the caller can correct: an invalid request, or one that exceeds the memory."""


class UsageError(ValueError):
    """Invalid flags, configuration or input data; the message states the requirement, then the value."""


class OutOfMemory(RuntimeError):
    """A device would need more memory than it has, or than its limit allows."""
