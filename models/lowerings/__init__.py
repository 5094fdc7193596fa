"""Lowerings: the ways to compute a convolution, each a weight transform, done once at build, and a local apply."""

from cambrian.models.lowerings.direct import IM2COL, MATMUL, NATIVE
from cambrian.models.lowerings.lowering import (
    POINTWISE as POINTWISE,
    Call as Call,
    Finish as Finish,
    Lowering as Lowering,
    Scale as Scale,
    Window as Window,
)
from cambrian.models.lowerings.onednn_direct import ONEDNN
from cambrian.models.lowerings.onednn_winograd import onednn_winograd
from cambrian.models.lowerings.winograd import winograd_1d, winograd_2d

LOWERINGS: dict[str, Lowering] = {
    "native": NATIVE,
    "matmul": MATMUL,
    "im2col": IM2COL,
    "winograd_1x2": winograd_1d(2),
    "winograd_1x4": winograd_1d(4),
    "winograd_2x2": winograd_2d(2),
    "winograd_4x4": winograd_2d(4),
    "winograd_2x2_split": winograd_2d(2, split=True),
    "winograd_4x4_split": winograd_2d(4, split=True),
    "onednn": ONEDNN,
    "onednn_winograd_2x2": onednn_winograd(2),
    "onednn_winograd_4x4": onednn_winograd(4),
}


def lowerings_for(call: Call, platform: str) -> list[str]:
    """Returns the names of the lowerings that compute a call on a platform, accurately enough for its dtype."""
    return [
        name
        for name, lowering in LOWERINGS.items()
        if call.dtype in lowering.dtypes and lowering.obstacle(platform) is None and lowering.supports(call)
    ]
