"""Flags of a command line, apart from those of the test process."""

from absl import flags

from cambrian.commands.flags import Flags, define_flags, read_flags


def parse(*arguments: object) -> Flags:
    values = flags.FlagValues()
    define_flags(values)
    values(["main.py", *map(str, arguments)])
    return read_flags(values)
