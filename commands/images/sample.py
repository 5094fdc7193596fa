"""The packaged sample of CIFAR-10: every tenth test image."""

import dataclasses
import io
import zipfile
from importlib import resources

from cambrian.commands.images.decode import decode_image
from cambrian.commands.images.source import Image
from cambrian.sharding import Preprocessing, UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class SampleSource:
    """1,000 JPEG images in memory, 1 MB; `images` are (CLASS/NNNN.jpg, content)."""

    images: tuple[tuple[str, bytes], ...] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    @property
    def description(self) -> str:
        return "packaged sample of CIFAR-10, split test"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        name, content = self.images[index]
        label = self.class_names.index(name.partition("/")[0])
        return Image(name, decode_image(io.BytesIO(content), name, preprocessing), label)


def open_sample(split: str) -> SampleSource:
    """Reads the packaged sample.

    Raises:
      UsageError: if `split` isn't `test`.
    """
    if split != "test":
        raise UsageError(
            f"the packaged sample of CIFAR-10 has the split test only, got {split!r}; --data cifar10 has all"
        )
    data = resources.files(__package__) / "cifar10_sample" / "cifar10_test_sample.zip"
    with zipfile.ZipFile(io.BytesIO(data.read_bytes())) as archive:
        images = tuple((name, archive.read(name)) for name in archive.namelist())
    return SampleSource(images, tuple(sorted({name.partition("/")[0] for name, _ in images})))
