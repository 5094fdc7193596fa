"""Shows a plan: a table of its layers, and a picture of the network."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from cambrian.commands.console import show_table
from cambrian.commands.output import write_figure
from cambrian.sharding import LayerCost, Partition, total_ms

_MIB = 2**20
# Okabe and Ito's colours, for any colour vision; the hatches distinguish them in grey.
_COLOURS = {
    Partition.WHOLE: ("#999999", ""),
    Partition.SAMPLES: ("#56B4E9", ""),
    Partition.ROWS: ("#E69F00", "//"),
    Partition.CHANNELS: ("#009E73", "\\\\"),
    Partition.INPUT_CHANNELS: ("#CC79A7", ".."),
}


def print_plan(plan: dict[str, dict], costs: Sequence[LayerCost], title: str, measured_ms: float) -> None:
    """Prints a line for each layer, and the predicted and the measured time of a launch.

    Args:
      plan: layer name → partition, lowering and micro_batch.
      costs: costs of its layers, in order.
      measured_ms: measured time of a launch.
    """
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True)
    for name in ("partition", "lowering"):
        table.add_column(name, no_wrap=True)
    for name in ("micro-batch", "ms", "communication ms", "weights MiB", "received MiB"):
        table.add_column(name, justify="right")
    for cost in costs:
        layer = plan[cost.name]
        table.add_row(
            cost.name,
            layer["partition"],
            layer["lowering"],
            str(layer["micro_batch"] or "all"),
            f"{cost.compute_ms:.2f}",
            f"{cost.communication_ms:.2f}" if cost.communication_ms else "",
            f"{cost.weight_bytes / _MIB:.2f}" if cost.weight_bytes else "",
            f"{cost.communicated_bytes / _MIB:.2f}" if cost.communicated_bytes else "",
        )
    show_table(table, width=140)
    predicted_ms = total_ms(costs)
    print(
        f"a launch: predicted {predicted_ms:.0f} ms, measured {measured_ms:.0f} ms "
        f"(predicted / measured {predicted_ms / measured_ms:.2f})"
    )


def draw_plan(
    plan: dict[str, dict], costs: Sequence[LayerCost], title: str, measured_ms: float, path: Path
) -> list[Path]:
    """Draws a bar for each layer, as long as its predicted time and coloured by partition.

    Returns:
      The written files, `path` with the suffixes .png and .svg.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, max(4.0, 0.17 * len(costs) + 1.6)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, cost in enumerate(costs):
        colour, hatch = _COLOURS[Partition(plan[cost.name]["partition"])]
        axes.barh(row, cost.compute_ms, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4)
        axes.barh(row, cost.communication_ms, left=cost.compute_ms, color="black")
        end = cost.compute_ms + cost.communication_ms
        axes.text(end, row, f" {plan[cost.name]['lowering']}", va="center", fontsize=6)
    axes.set_yticks(range(len(costs)), [cost.name for cost in costs], fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    longest_ms = max(cost.compute_ms + cost.communication_ms for cost in costs)
    axes.set_xlim(0, 1.2 * longest_ms)  # room for the names of the lowerings
    axes.set_xlabel("predicted ms a launch")
    axes.set_title(f"{title}\npredicted {total_ms(costs):.0f} ms, measured {measured_ms:.0f} ms a launch", fontsize=9)
    used = {layer["partition"] for layer in plan.values()}
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=str(partition))
        for partition, (colour, hatch) in _COLOURS.items()
        if partition in used
    ]
    if any(cost.communication_ms for cost in costs):
        handles.append(Patch(facecolor="black", label="change of layout"))
    axes.legend(handles=handles, loc="lower right", fontsize=8)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        write_figure(figure, file, dpi=150)
    return written
