"""The parts of a job: each is a list of images, which one task classifies and one output file holds.

A part's name carries a digest of its list, so its file says exactly which images it answers. Whatever Ray repeats, and
however often a job is started again, the same images make the same parts with the same names.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from cambrian.commands.images.file_system import FileSystem, LocalFiles, RemoteFiles
from cambrian.commands.images.folder import FolderSource, by_extension, open_folder
from cambrian.commands.images.given import GivenImages
from cambrian.sharding import UsageError

_PARQUET = ".parquet"
_NUM_READERS = 16  # of Parquet footers, mostly waiting


class RowGroup(NamedTuple):
    """A row group of a Parquet file, and where its rows begin in the file."""

    file: str
    index: int
    first_row: int
    num_rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetRows:
    """Row groups of Parquet files in a folder, whose column `column` holds images."""

    file_system: Any  # pyarrow.fs.FileSystem
    folder: str
    column: str
    row_groups: tuple[RowGroup, ...]

    @property
    def description(self) -> str:
        files = {group.file for group in self.row_groups}
        return f"Parquet file {self._path(*files)}" if len(files) == 1 else f"Parquet files in {self.folder}"

    @property
    def class_names(self) -> None:
        return None

    def __len__(self) -> int:
        return sum(group.num_rows for group in self.row_groups)

    def read_images(self) -> GivenImages:
        """Reads the images' column, row group by row group. An image's name is FILE:ROW.

        Raises:
          OSError: naming file and row group, if it can't be read.
        """
        from pyarrow.parquet import ParquetFile

        names, values = [], []
        for group in self.row_groups:
            path = self._path(group.file)
            try:
                with self.file_system.open_input_file(path) as file:
                    # By its name: a column `image.old` is read with `image`.
                    column = ParquetFile(file).read_row_group(group.index, columns=[self.column]).column(self.column)
            except (OSError, ValueError) as error:
                raise OSError(f"{path}, row group {group.index}: {error}") from error
            names += [f"{group.file}:{group.first_row + row}" for row in range(group.num_rows)]
            values += column.to_pylist()
        return GivenImages(names, values)

    def _path(self, file: str) -> str:
        return os.path.join(self.folder, file)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Images that one task classifies.

    Attributes:
      name: of the output file; carries the part's number and a digest of its list.
      images: the list. Without class names, which all parts share.
    """

    name: str
    images: FolderSource | ParquetRows

    def __len__(self) -> int:
        return len(self.images)


def open_images(data: str, split: str) -> tuple[FolderSource | ParquetRows, list[str]]:
    """Lists the images of a folder, or the rows of Parquet files, without reading them.

    Args:
      data: path or URI, such as s3://bucket/folder, of a Parquet file, a folder of them, or a folder of images.
      split: which split, if a folder of images has a split level.

    Returns:
      The images, and human-readable notes.

    Raises:
      UsageError: if there are none, or the Parquet files have no column of images.
    """
    from pyarrow.fs import FileSystem as ArrowFileSystem, FileType, LocalFileSystem

    try:
        if "://" in data:
            arrow_files, path = ArrowFileSystem.from_uri(data)
            files: FileSystem = RemoteFiles(arrow_files)
            kind = arrow_files.get_file_info(path).type
            exists, is_file = kind != FileType.NotFound, kind == FileType.File
        else:  # pyarrow takes no names that aren't UTF-8
            arrow_files, path, files = LocalFileSystem(), os.path.abspath(data), LocalFiles()
            exists, is_file = os.path.exists(data), os.path.isfile(data)
        if is_file:
            if not path.endswith(_PARQUET):
                raise UsageError(f"data must be a folder, or a file that ends in {_PARQUET}, got {data}")
            return _open_parquet(arrow_files, os.path.dirname(path), [os.path.basename(path)]), []
        if not exists:
            raise UsageError(f"data must be a folder of images, or Parquet files, got {data!r}: no such file or folder")
        parquet, others = [], []
        for entry in files.list(path):
            if entry.name[0] not in "._":
                (parquet if entry.is_file and entry.name.endswith(_PARQUET) else others).append(entry.name)
        if not parquet:
            return open_folder(path, split, files)
        notes = [f"ignored what isn't a Parquet file in {path}: {by_extension(others)}"] if others else []
        return _open_parquet(arrow_files, path, sorted(parquet)), notes
    except UsageError:
        raise
    except (OSError, ValueError, NotImplementedError, ImportError) as error:  # pyarrow's errors are of these types
        raise UsageError(f"data must be a path or URI that can be read, got {data!r}: {error}") from None


def _open_parquet(file_system: Any, folder: str, files: Sequence[str]) -> ParquetRows:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    def read_footer(name: str) -> tuple[pyarrow.Schema, list[int]]:
        try:
            with file_system.open_input_file(os.path.join(folder, name)) as file:
                footer = ParquetFile(file).metadata
        except (OSError, ValueError) as error:
            raise UsageError(
                f"data must be readable Parquet files, got {os.path.join(folder, name)}: {error}"
            ) from None
        return footer.schema.to_arrow_schema(), [
            footer.row_group(index).num_rows for index in range(footer.num_row_groups)
        ]

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        footers = list(pool.map(read_footer, files))
    column = _image_column(footers[0][0], os.path.join(folder, files[0]))
    row_groups = []
    for name, (schema, counts) in zip(files, footers, strict=True):
        if column not in schema.names:
            raise UsageError(f"each Parquet file must have the column {column!r}, got {name} without it")
        first_row = 0
        for index, count in enumerate(counts):
            row_groups.append(RowGroup(name, index, first_row, count))
            first_row += count
    if not any(group.num_rows for group in row_groups):
        raise UsageError(f"expected Parquet files with rows, got none in {folder}")
    return ParquetRows(file_system, folder, column, tuple(row_groups))


def _image_column(schema: Any, file: str) -> str:
    """The column named `image`, or the only one that holds bytes, or structs with a field `bytes`."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)

    candidates = [
        field.name
        for field in schema
        if holds_bytes(field.type)
        or (
            types.is_struct(field.type)
            and any(inner.name == "bytes" and holds_bytes(inner.type) for inner in field.type)
        )
    ]
    if "image" in candidates:
        return "image"
    if len(candidates) == 1:
        return candidates[0]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UsageError(
        f"Parquet files must have a column `image`, or a single one, of binary values or of structs with `bytes`, "
        f"got {file} with {columns}"
    )


def make_parts(images: FolderSource | ParquetRows, batch_size: int) -> list[Part]:
    """Divides N images into about √N parts of √N, in whole batches; a row group is never divided.

    A kill loses at most the part that each thread works on, and many workers have parts to share.
    """
    least = math.ceil(math.sqrt(len(images)) / batch_size) * batch_size
    if isinstance(images, FolderSource):
        lists = [images.files[start : start + least] for start in range(0, len(images.files), least)]
        pieces = [dataclasses.replace(images, files=files, class_names=None) for files in lists]
    else:
        pieces = [dataclasses.replace(images, row_groups=groups) for groups in _grouped(images.row_groups, least)]
    return [Part(f"part-{number:06d}-{_digest(piece)}{_PARQUET}", piece) for number, piece in enumerate(pieces)]


def _grouped(row_groups: Sequence[RowGroup], least: int) -> Iterator[tuple[RowGroup, ...]]:
    group, num_rows = [], 0
    for row_group in row_groups:
        group.append(row_group)
        num_rows += row_group.num_rows
        if num_rows >= least:
            yield tuple(group)
            group, num_rows = [], 0
    if num_rows:
        yield tuple(group)


def _digest(images: FolderSource | ParquetRows) -> str:
    listed = images.files if isinstance(images, FolderSource) else images.row_groups
    return hashlib.sha256(json.dumps([images.folder, listed]).encode()).hexdigest()[:16]
