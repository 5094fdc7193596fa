"""The one error that means: what was asked for makes no sense."""


class UsageError(ValueError):
    """Flags, a configuration or input data make no sense; the message states the requirement, then what was got."""
