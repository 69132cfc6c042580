"""Measures how time and memory grow with one size at a time, and writes a table and a picture."""

import datetime
import json
import math
import pathlib
import subprocess
import sys

import contest

# For each sweep: the option of bench_step, its first value, its first value with --small, and the label of the size.
SWEEPS = {
    "batch": ("batch", 1, 1, "images a batch"),
    "T": ("--nca-steps", 8, 2, "NCA steps"),
    "Z": ("--latent", 32, 4, "latent size"),
    "grid": ("--grid", 8, 4, "side of the grid"),
    "pool": ("--pool", 256, 32, "entries of the pool"),
}
DEFAULTS = {"batch": "4", "--nca-steps": None, "--latent": None}
SMALL = {"batch": "2", "--nca-steps": "2", "--latent": "8"}


def command(program, args, option, value):
    """Returns the command of one configuration, and the size after adjustment for the model."""
    options = dict(SMALL if args.small else DEFAULTS)
    if args.model == "doubling" and option == "--nca-steps":
        value = max(1, value // 4)
    if option == "--grid":
        options["--task"] = "cells"
    options[option] = str(value)
    batch = options.pop("batch")
    flags = [part for name, text in options.items() if text for part in (name, text)]
    return [program, args.model, batch, *flags], value


def point(program, args, option, value):
    """Measures the time, memory and operations of one configuration."""
    call, value = command(program, args, option, value)
    file = pathlib.Path("/tmp") / f"vnca-growth-{id(call)}.npz"
    try:
        subprocess.run([*call, "--export", file], check=True)
        contestant = contest.Contestant("ours", [*call, "--serve", file])
        contestant.run(1)
        seconds = min(contestant.run(1)["seconds"] for _ in range(args.turns))
        contestant.close()
    finally:
        file.unlink(missing_ok=True)
    record = contestant.record
    return {
        "value": value,
        "seconds": seconds,
        "flops": record["flops"],
        "memory": record["memory"] - record["rest_memory"],
        "stacked_bytes": record["stacked_bytes"],
        "compile_seconds": record["compile_seconds"],
    }


def run(program, args):
    result = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": contest.machine(),
        "model": args.model,
        "sweeps": {},
    }
    for name in args.sweeps:
        if name == "pool" and args.model == "doubling":
            continue  # the doubling model has no pool
        option, first, small, label = SWEEPS[name]
        points = []
        for i in range(args.points):
            value = (small if args.small else first) * 2**i
            contest.say(f"{name} {value}")
            points.append(point(program, args, option, value))
        result["sweeps"][name] = {"label": label, "points": points}
    return result


def exponent(points, field):
    """Returns the exponent with which a quantity grows as a power of the size, from the last two points."""
    a, b = points[-2:]
    if a[field] <= 0 or b[field] <= 0:
        return "–"
    return f"{math.log(b[field] / a[field]) / math.log(b['value'] / a['value']):.2f}"


def text(result):
    """Formats the tables of all sweeps."""
    lines = [f"{result['date']}, {result['machine']['cpu']}, {result['machine']['cores']} cores, {result['model']}: a gradient step"]
    for name, sweep in result["sweeps"].items():
        points = sweep["points"]
        rows = [[sweep["label"], "ms", "GFLOP", "MiB", "stacked MiB", "compile s"]]
        for p in points:
            rows.append([str(p["value"]), f"{p['seconds'] * 1e3:.1f}", f"{p['flops'] * 1e-9:.2f}", f"{p['memory'] / 2**20:.0f}",
                         f"{p['stacked_bytes'] / 2**20:.1f}", f"{p['compile_seconds']:.1f}"])
        rows.append(["grows as its power", *(exponent(points, f) for f in ("seconds", "flops", "memory", "stacked_bytes")), ""])
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        line = lambda row: "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths)) + " |"
        lines += ["", line(rows[0]), "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *map(line, rows[1:])]
    return "\n".join(lines)


def draw(root, result, file):
    """Draws the picture with the peers' Python, which has matplotlib."""
    python = subprocess.run([root / "tools/peers/setup", "--quiet"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    subprocess.run([python, __file__, str(file)], input=json.dumps(result), text=True, check=True)


def plot(result, file):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    sweeps = result["sweeps"]
    figure, axes = pyplot.subplots(2, len(sweeps), figsize=(3.4 * len(sweeps), 6), squeeze=False, layout="constrained")
    figure.suptitle(f"A gradient step of the {result['model']} model")
    rows = [("seconds", "milliseconds", 1e3), ("memory", "MiB beyond the process at rest", 2**-20)]
    for column, sweep in enumerate(sweeps.values()):
        points = sweep["points"]
        sizes = [p["value"] for p in points]
        for row, (field, label, scale) in enumerate(rows):
            ax = axes[row][column]
            values = [p[field] * scale for p in points]
            ax.plot(sizes, values, "o-", label="measured")
            if row == 0 and values[-1] > 0:
                # The number of operations, scaled to meet the time at the last point.
                ax.plot(sizes, [p["flops"] / points[-1]["flops"] * values[-1] for p in points], ":", label="as the operations")
            ax.set_xlim(left=0)
            ax.set_ylim(bottom=0)
            ax.set_xticks(sizes, [str(s) for s in sizes])
            ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%.4g"))
            ax.grid(alpha=0.3)
            ax.set_xlabel(sweep["label"])
            if column == 0:
                ax.set_ylabel(label)
            if row == 0 and column == 0:
                ax.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    plot(json.load(sys.stdin), sys.argv[1])
