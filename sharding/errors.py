"""The errors that tell what was asked for makes no sense, or needs more memory than there is."""


class UsageError(ValueError):
    """Flags, a configuration or input data make no sense; the message states the requirement, then what was got."""


class OutOfMemory(RuntimeError):
    """A device would have to hold more than its memory, or than it is allowed."""
