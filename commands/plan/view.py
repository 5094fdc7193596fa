"""Shows a plan: a table of its layers, and a picture of the network."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

from cambrian.commands.console import show_table, shown_ms
from cambrian.commands.output import write_figure
from cambrian.sharding import LayerCost, Partition, total_ms

_MIB = 2**20
_MOST_NAMED = 40  # layers whose names fit
# Okabe and Ito's colours, for any colour vision.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#999999")
_HATCHES = {
    Partition.SAMPLES: "",
    Partition.WHOLE: "..",
    Partition.ROWS: "//",
    Partition.CHANNELS: "\\\\",
    Partition.INPUT_CHANNELS: "xx",
}


def print_plan(plan: dict[str, dict], costs: Sequence[LayerCost], title: str, measured_ms: float) -> None:
    """Prints a line for each layer, and the predicted and the measured time of a launch.

    Args:
      plan: layer name → partition, precision, lowering and micro_batch.
      costs: costs of its layers, in order.
      measured_ms: measured time of a launch.
    """
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True)
    for name in ("partition", "precision", "lowering"):
        table.add_column(name, no_wrap=True)
    for name in ("micro-batch", "ms", "communication ms", "weights MiB", "received MiB"):
        table.add_column(name, justify="right")
    for cost in costs:
        layer = plan[cost.name]
        table.add_row(
            cost.name,
            layer["partition"],
            layer["precision"],
            layer["lowering"],
            str(layer["micro_batch"] or "all"),
            f"{cost.compute_ms:.2f}" if cost.compute_ms else "",  # not measured
            f"{cost.communication_ms:.2f}" if cost.communication_ms else "",
            f"{cost.weight_bytes / _MIB:.2f}" if cost.weight_bytes else "",
            f"{cost.communicated_bytes / _MIB:.2f}" if cost.communicated_bytes else "",
        )
    show_table(table, width=140)
    predicted_ms = total_ms(costs)
    line = f"a launch: predicted {shown_ms(predicted_ms)} ms, measured {shown_ms(measured_ms)} ms"
    if missing := _missing_costs(costs):
        print(line + missing)
    else:
        print(f"{line} (predicted / measured {predicted_ms / measured_ms:.2f})")


def _missing_costs(costs: Sequence[LayerCost]) -> str:
    """What to add to a predicted time; empty if all layers were measured."""
    unmeasured = sum(not cost.compute_ms for cost in costs)
    return f"; the prediction lacks {unmeasured} of {len(costs)} layers, which weren't measured" if unmeasured else ""


@rc_context({"text.parse_math": False})  # names may hold $
def draw_plan(
    plan: dict[str, dict], costs: Sequence[LayerCost], title: str, measured_ms: float, path: Path
) -> list[Path]:
    """Draws a column for each layer, as high as its predicted time.

    Its colour is the lowering and its hatch the partition, unless all layers have the same.

    Returns:
      The written files, `path` with the suffixes .png and .svg.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    axes = figure.subplots()
    lowerings = list(dict.fromkeys(layer["lowering"] for layer in plan.values()))
    partitions = {Partition(layer["partition"]) for layer in plan.values()}
    hatches = {each: hatch for each, hatch in _HATCHES.items() if each in partitions} if len(partitions) > 1 else {}
    colours = dict(zip(lowerings, itertools.cycle(_COLOURS), strict=False))
    for place, cost in enumerate(costs):
        layer = plan[cost.name]
        look = {"color": colours[layer["lowering"]], "hatch": hatches.get(Partition(layer["partition"]))}
        axes.bar(place, cost.compute_ms, width=1, edgecolor="black", linewidth=0.4, **look)
        axes.bar(place, cost.communication_ms, width=1, bottom=cost.compute_ms, color="black")
    _name_columns(axes, [cost.name for cost in costs])
    axes.margins(x=0.005)
    # Without any measured operation, the axis still needs a height.
    axes.set_ylim(0, 1.06 * max(cost.compute_ms + cost.communication_ms for cost in costs) or 1.0)
    axes.set_xlabel("layer" if hatches else f"layer, all with partition {partitions.pop()}")
    axes.set_ylabel("predicted ms a launch")
    times = (
        f"predicted {shown_ms(total_ms(costs))} ms, measured {shown_ms(measured_ms)} ms a launch{_missing_costs(costs)}"
    )
    axes.set_title(f"{title}\n{times}", fontsize=10)
    handles = [Patch(facecolor=colour, edgecolor="black", label=name) for name, colour in colours.items()]
    handles += [
        Patch(facecolor="white", edgecolor="black", hatch=hatch, label=f"partition {partition}")
        for partition, hatch in hatches.items()
    ]
    if any(cost.communication_ms for cost in costs):
        handles.append(Patch(facecolor="black", label="change of layout"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        write_figure(figure, file, dpi=150)
    return written


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names each layer; of too many, the first of each stage."""
    if len(names) <= _MOST_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        return
    stages = [name.partition(".")[0] for name in names]
    named = [stages.index(stage) for stage in dict.fromkeys(stages) if stages.count(stage) > 1]
    axes.set_xticks(named, [stages[place] for place in named])
