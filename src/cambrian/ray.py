"""Batch inference with Ray Data: a callable class for `Dataset.map_batches`. Needs the extra `ray`.

dataset.map_batches(cambrian.ray.Classifier, fn_constructor_kwargs={"artifact": "artefact"}, concurrency=4)
"""

from cambrian.commands.batch.cluster import require_ray

require_ray()

from cambrian.commands.batch.classifier import Classifier as Classifier  # noqa: E402
from cambrian.commands.batch.shipped import ShippedArtifact as ShippedArtifact, ship as ship  # noqa: E402

__all__ = ["Classifier", "ShippedArtifact", "ship"]
