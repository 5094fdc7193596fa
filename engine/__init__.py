"""How a program runs: compiled ahead of time, saved as an artefact, loaded without its model, fed by host threads."""

from cambrian.engine.artifact.load import load as load
from cambrian.engine.artifact.portable import Portable as Portable, load_portable as load_portable
from cambrian.engine.artifact.save import save as save
from cambrian.engine.cards import Cards as Cards, CardsEnded as CardsEnded
from cambrian.engine.errors import (
    ArtifactExists as ArtifactExists,
    DamagedArtifact as DamagedArtifact,
    ParityError as ParityError,
)
from cambrian.engine.runtime.compile import compile_program as compile_program, put_params as put_params
from cambrian.engine.runtime.executable import Analysis as Analysis, Executable as Executable
from cambrian.engine.runtime.parity import Parity as Parity
