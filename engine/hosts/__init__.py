"""Processes, on one host or several, whose devices form one mesh: how they meet, agree, and notice an end."""

from cambrian.engine.hosts.connection import (
    JOIN_S as JOIN_S,
    ProcessEnded as ProcessEnded,
    ProcessRefused as ProcessRefused,
)
from cambrian.engine.hosts.group import LAST_S as LAST_S, Group as Group
from cambrian.engine.hosts.rendezvous import meet as meet
from cambrian.engine.hosts.shared_executable import SharedExecutable as SharedExecutable
