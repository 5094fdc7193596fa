"""How a program runs: compiled ahead of time, saved as an artefact, loaded without its model, fed by host threads."""

from engine.artifact import load as load, save as save
from engine.compile import compile_program as compile_program, put_params as put_params
from engine.configuration import (
    Configuration as Configuration,
    ModelConfig as ModelConfig,
    Preset as Preset,
)
from engine.errors import (
    ArtifactExists as ArtifactExists,
    DamagedArtifact as DamagedArtifact,
    ParityError as ParityError,
)
from engine.executable import Analysis as Analysis, Executable as Executable
from engine.inputs import (
    Image as Image,
    ImageSource as ImageSource,
    UnreadableImage as UnreadableImage,
    open_source as open_source,
)
from engine.parity import Parity as Parity
from engine.portable import Portable as Portable, load_portable as load_portable
from engine.report import Report as Report
from engine.run import run_configuration as run_configuration
from sharding import OutOfMemory as OutOfMemory
