"""The rows that a job writes: one for each image, in Parquet files, with its prediction or its error."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cambrian.commands.run.classify import ClassifiedBatch, Tally, name_of

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # below the data's folder
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("probability", pa.float32()),
        ("top5", pa.list_(pa.struct([("name", pa.string()), ("index", pa.int32()), ("probability", pa.float32())]))),
        ("label_index", pa.int32()),
        ("error", pa.string()),
    ]
)


def rows_of(
    batches: Iterable[ClassifiedBatch],
    paths: Sequence[str],
    labels: Sequence[int | None],
    class_names: tuple[str, ...],
    logit_names: tuple[str, ...],
) -> dict[str, list]:
    """Returns the columns of `SCHEMA` for all images of the batches, in input order.

    Args:
      paths: of every image of the source.
      labels: of every image of the source; indices into `class_names`, or None.
    """
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for batch in batches:
        errors = {skipped.index: skipped.error.reason for skipped in batch.skipped}
        predictions = iter(batch.predictions)
        for index in batch.indices:
            label = labels[index]
            row: dict[str, object] = {
                "path": paths[index],
                "label": None if label is None else name_of(class_names, label),
                "label_index": label,
                "error": errors.get(index),
            }
            if index not in errors:
                prediction = next(predictions)
                top = zip(prediction.top_indices, prediction.top_probabilities, strict=True)
                row |= {
                    "predicted": prediction.predicted,
                    "probability": prediction.probability,
                    "top5": [
                        {"name": name_of(logit_names, number), "index": number, "probability": share}
                        for number, share in top
                    ],
                }
            for name, values in columns.items():
                values.append(row.get(name))
    return columns


def to_parquet(columns: dict[str, list]) -> bytes:
    """Returns a Parquet file of these columns."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns, SCHEMA), file)
    return file.getvalue()


def tally_rows(tally: Tally, file: Path) -> int:
    """Adds a file's predictions to a tally; returns the number of images with an error."""
    table = pq.read_table(file, columns=["label_index", "probability", "top5", "error"])
    read = table.filter(table["error"].is_null())
    tally.num_images += len(read)
    tally.of_softmax = False  # rows don't hold all outputs
    tally.num_undefined += int(np.isnan(read["probability"].to_numpy()).sum())
    if tally.confusion is not None and len(read):
        labels = read["label_index"].to_numpy()
        top = read["top5"].combine_chunks()
        indices = top.flatten().field("index").to_numpy().reshape(len(read), -1)
        np.add.at(tally.confusion, (labels, indices[:, 0]), 1)
        tally.top5_hits += int((indices == labels[:, None]).any(axis=1).sum())
    return len(table) - len(read)
