"""The table that `gpu.py` prints."""

from typing import Any

from rich.table import Table

from benchmarks.tables import make_table


def result_table(parts: dict[str, dict[str, Any]]) -> Table:
    """Returns a row for each side at its best batch size, and what the other parts found in the title."""
    rows = {name: part["rows"] for name, part in parts.items() if part["rows"]}
    peak = rows["peak"][0]["tflops"] if "peak" in rows else None
    facts = []
    if peak is not None:
        facts.append(f"{rows['peak'][0]['device']}, bfloat16 products {peak:.1f} TFLOP/s")
    if "tests" in rows:
        facts.append("tests: " + ", ".join(f"{count} {name}" for name, count in rows["tests"][0].items()))
    if "training" in rows:
        found = rows["training"][0]
        facts.append(f"training {found['images_per_second'][-1]:.0f} images/s in the last of {found['epochs']} epochs")
    numbers = ("batch", "images/s", "ms per 10,000", "TFLOP/s", "of the peak", "relative error")
    table = make_table("; ".join(facts), ("images", "side", "precision"), numbers)
    best: dict[tuple, dict[str, Any]] = {}
    for part in rows.values():
        for row in part:
            if "side" in row:
                key = row["size"], row["side"], row["precision"]
                best[key] = max(best.get(key, row), row, key=lambda found: found["images_per_second"])
    for (size, side, precision), row in best.items():
        table.add_row(
            f"{size}×{size}",
            side,
            precision,
            str(row["batch"]),
            f"{row['images_per_second']:.0f}",
            f"{1e7 / row['images_per_second']:.0f}",
            f"{row['tflops']:.1f}",
            "" if peak is None else f"{row['tflops'] / peak:.2f}",
            f"{row['relative_error']:.1e}" if "relative_error" in row else "",
        )
    return table
