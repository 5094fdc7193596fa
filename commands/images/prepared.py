"""Finds prepared CIFAR-10 by its files alone: importing TFDS takes half a second."""

import json
import re
from pathlib import Path

from cambrian.sharding import UsageError
from cambrian.sharding.host import user_folder

# The only format with random access that TFDS reads without TensorFlow.
FILE_FORMAT = "array_record"


def data_dir() -> Path:
    """The folder of TFDS's data sets: TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return user_folder("TFDS_DATA_DIR", "tensorflow_datasets")


def find_prepared() -> Path | None:
    """The folder of the newest prepared CIFAR-10 that is readable without TensorFlow; None without one.

    Raises:
      UsageError: if the description of a version is damaged.
    """
    readable = [folder for folder, file_format in prepared_formats().items() if file_format == FILE_FORMAT]
    return max(readable, key=lambda folder: [int(part) for part in folder.name.split(".")], default=None)


def prepared_formats() -> dict[Path, str]:
    """The file format of each prepared version of CIFAR-10, by its folder.

    Raises:
      UsageError: if the description of a version is damaged.
    """
    formats = {}
    for info in data_dir().glob("cifar10/*/dataset_info.json"):
        if not re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name):
            continue  # an unfinished preparation, or a folder of the user's
        try:
            formats[info.parent] = json.loads(info.read_text()).get("fileFormat", "tfrecord")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UsageError(f"expected the description of a TFDS data set, got {info}: {error}") from None
    return formats
