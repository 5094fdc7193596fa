"""Packs every tenth CIFAR-10 test image of each class into one reproducible zip.

    python make_sample.py TEST_FOLDER cifar10_test_sample.zip

TEST_FOLDER holds CLASS/NNNN.jpg. Images are stored as they are, uncompressed, with a fixed time: the same images give
the same bytes.
"""

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path

EVERY = 10
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def select(folder: Path) -> Iterator[Path]:
    """The first, eleventh, … image of each class, in the order of their names."""
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from sorted(class_folder.glob("*.jpg"))[::EVERY]


def write_zip(images: list[Path], folder: Path, target: Path) -> None:
    """Stores `images` under their paths relative to `folder`."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            entry = zipfile.ZipInfo(image.relative_to(folder).as_posix(), EPOCH)
            entry.create_system = 3  # Unix, whatever the system
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, image.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="CLASS/NNNN.jpg")
    parser.add_argument("target", type=Path, help="zip to write")
    arguments = parser.parse_args()
    images = list(select(arguments.folder))
    write_zip(images, arguments.folder, arguments.target)
    print(f"{len(images)} images, {arguments.target.stat().st_size} bytes in {arguments.target}")


if __name__ == "__main__":
    main()
