"""Formats the raw numbers of a run as a table, and checks that all contestants computed the same losses."""

import statistics

# Tolerated relative differences due to rounding: of the first loss, and of the losses after updates of the weights.
# GPUs compute f32 matmuls in TF32 by default.
TOLERANCE = {"f32": (1e-4, 1e-3), "tf32": (2e-3, 1e-2), "bf16": (2e-2, 5e-2), "gpu bf16": (1e-2, 1e-2)}


def reference(case):
    """Returns the record that the others are compared with: ours, which is the first."""
    return next(iter(case["contestants"].values()))


def seconds_a_step(record):
    """Returns the time per step of each round."""
    return {turn["round"]: turn["seconds"] / turn["steps"] for turn in record["turns"]}


def difference(case, record):
    """Returns the relative difference of the first loss from ours, and the largest of all losses."""
    pairs = list(zip(record["values"], reference(case)["values"]))
    differences = [abs(got - ours) / abs(ours) if got == got else float("inf") for got, ours in pairs]
    return differences[0], max(differences)


def agrees(case, name, record):
    """Reports whether a contestant's losses agree with ours."""
    first_tolerance, tolerance = tolerances(case, name)
    first, largest = difference(case, record)
    return first <= first_tolerance and largest <= tolerance


def tolerances(case, name):
    """Returns the tolerated relative differences of a contestant's first loss and of all its losses."""
    on_cpu = case.get("device", "cpu") == "cpu"
    if "bf16" in name:
        return TOLERANCE["bf16" if on_cpu else "gpu bf16"]
    return TOLERANCE["f32" if on_cpu else "tf32"]


def failed(result):
    """Reports whether a contestant failed or computed other losses."""
    return any("failed" in record or not agrees(case, name, record)
               for case in result["cases"] for name, record in case["contestants"].items())


def spread(values, template):
    """Formats the median with the lowest and the highest value."""
    low, high = template.format(min(values)), template.format(max(values))
    return f"{template.format(statistics.median(values))} ({low}–{high})"


def row(case, name, record):
    times, ours = seconds_a_step(record), seconds_a_step(reference(case))
    ratios = [times[n] / ours[n] for n in times if n in ours]
    share = reference(case)["least_flops"] * 1e-9 / statistics.median(times.values()) / max(case["peak_gflops"])
    loss = f"{difference(case, record)[1]:.0e}" + ("" if agrees(case, name, record) else " DIFFERS")
    return [
        name,
        spread([t * 1e3 for t in times.values()], "{:.4g}"),
        spread(ratios, "{:.2f}"),
        f"{share:.0%}",
        f"{record['memory'] / 2**20:.0f}",
        f"{record['compile_seconds']:.1f}" if record["compile_seconds"] > 0.05 else "–",
        loss,
    ]


def title(case):
    text = f"{case['model']}, " + ("a gradient step" if case["task"] == "step" else f"IWELBO of {case['samples']} samples")
    text += f", batch {case['batch']}"
    if case["nca_steps"]:
        text += f", {case['nca_steps']} NCA steps" + (" a doubling" if case["model"] == "doubling" else "")
    return text


def aligned(rows):
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    line = lambda r: "| " + " | ".join(cell.ljust(width) for cell, width in zip(r, widths)) + " |"
    return [line(rows[0]), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows[1:])]


def text(result):
    """Formats the tables of all cases."""
    machine = result["machine"]
    versions = {}
    for case in result["cases"]:
        for record in case["contestants"].values():
            versions |= record.get("versions", {})
    lines = [
        f"{result['date']}, commit {result['commit'] or 'unknown'}",
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load {machine['load']:.1f} at the start",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + f", {result['rustc'] or 'unknown rustc'}",
    ]
    lines.append("ratio: time over ours in the same round, median (lowest–highest); of peak: share of the peak in f32 matmuls; MiB: the most "
                 "memory in use after compiling, of the whole process")
    for case in result["cases"]:
        flops, least = reference(case)["flops"], reference(case)["least_flops"]
        lines += ["", f"### {title(case)}", ""]
        lines.append(f"At least {least * 1e-9:.1f} GFLOP; ours executes {flops * 1e-9:.1f}. f32 matmuls reach "
                     f"{spread(case['peak_gflops'], '{:.0f}')} GFLOP/s here.")
        lines.append("")
        head = ["", "ms a step" if case["task"] == "step" else "ms", "ratio", "of peak", "MiB", "compile s", "loss off by"]
        ran = {name: record for name, record in case["contestants"].items() if "failed" not in record}
        lines += aligned([head, *(row(case, name, record) for name, record in ran.items())])
        messages = [record["failed"] for record in case["contestants"].values() if "failed" in record]
        lines += ["", *messages] if messages else []
    return "\n".join(lines)
