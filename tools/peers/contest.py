"""Runs the contestants of a benchmark as processes that take turns, in rounds."""

import datetime
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

CHECKED_STEPS = 2  # steps whose losses are compared before the rounds begin
FLAGS = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]  # instruction sets that decide the speed of matmuls


class Failure(Exception):
    """A contestant exited."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def without_folder(part):
    """Returns a word of a command without its folder, because local paths mean nothing on other machines."""
    return pathlib.Path(part).name if pathlib.Path(part).is_absolute() else str(part)


class Contestant:
    def __init__(self, name, command):
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.record = {"command": [without_folder(part) for part in command], "turns": []}
        self.record |= self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
            raise Failure(f"{self.name} ended with {code}: {last[0][:300]}")
        return json.loads(line)

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the contestant exited: `answer` reports why
        return self.answer()

    def run(self, steps):
        answer = self.ask(f"run {steps}")
        self.record["memory"] = answer["memory"]
        return answer

    def turn(self, number, steps):
        seconds = self.run(steps)["seconds"]
        self.record["turns"].append({"round": number, "steps": steps, "seconds": seconds})
        return seconds

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def build(root):
    """Builds our contestant and returns the program's path."""
    subprocess.run([root / "tools/setup", "--quiet"], check=True)
    subprocess.run(["cargo", "build", "--release", "--quiet", "--example", "bench_step"], check=True, cwd=root)
    target = os.environ.get("CARGO_TARGET_DIR") or os.environ.get("CARGO_BUILD_TARGET_DIR") or "target"
    return root / target / "release/examples/bench_step"


def commands(root, args, program, python, case, inputs):
    """Yields the name and the command of each contestant, ours first."""
    ours = [case["model"], str(case["batch"]), "--task", case["task"], "--samples", str(case["samples"])]
    ours += ["--nca-steps", str(case["nca_steps"])] if case["nca_steps"] else []
    ours += ["--latent", str(args.latent)] if args.latent else []
    ours += ["--device", args.device] if args.device != "cpu" else []
    ours += ["--programs", args.programs / folder(case)] if args.programs else []
    for name in args.ours:
        options = {"bf16": ["--precision", "bf16"]}
        unknown = set(name.split("-")[1:]) - options.keys()
        if unknown or name.split("-")[0] != "ours":
            raise SystemExit(f"unknown contestant {name!r}: ours are ours and ours-bf16")
        variant = itertools.chain.from_iterable(options[word] for word in name.split("-")[1:])
        yield name, [program, *ours, *variant, "--serve", inputs]
    if args.old:
        yield "old", [args.old, *ours, "--serve", inputs]
    for name in args.peers:
        peer = [name, case["model"], case["task"], inputs, str(case["nca_steps"])]
        yield name, [python, root / "tools/peers/peer.py", *peer]


def folder(case):
    """Returns the subfolder of a case's exported programs."""
    return f"{case['model']}-{case['task']}-{case['batch']}"


def start(commands):
    """Starts the contestants. Returns those that are ready, and the messages of those that failed."""
    contestants, failures = [], {}
    for name, command in commands:
        say(f"  starting {name}")
        try:
            contestants.append(Contestant(name, command))
        except Failure as failure:
            say(f"  {failure}")
            failures[name] = str(failure)
    return contestants, failures


def check(contestants, steps, failures):
    """Runs each contestant's first steps, which also warms it up, and records the losses. Removes contestants that fail."""
    for contestant in list(contestants):
        say(f"  checking {contestant.name}")
        try:
            contestant.record["values"] = contestant.run(steps)["values"]
        except Failure as failure:
            say(f"  {failure}")
            failures[contestant.name] = str(failure)
            contestants.remove(contestant)


def rounds(contestants, args):
    """Runs the rounds: each measures the machine's peak, then every contestant takes a turn. Returns the peaks in GFLOP/s.

    Every other round goes in reverse order. A contestant whose turn took longer than `args.slow` seconds runs one step in the
    second round, and no longer takes part after that.
    """
    ours = contestants[0]
    steps = max(1, round(args.turn / ours.run(1)["seconds"]))
    slow, peaks = set(), []
    for number in range(args.rounds):
        order = contestants if number % 2 == 0 else contestants[::-1]
        peaks.append(ours.ask("peak")["gflops"])
        for contestant in order:
            if contestant in slow and number > 1:
                continue
            say(f"  round {number + 1} of {args.rounds}: {contestant.name}")
            if contestant.turn(number, 1 if contestant in slow else steps) > args.slow:
                slow.add(contestant)
    return peaks


def run_case(root, args, program, python, case):
    with tempfile.TemporaryDirectory() as scratch:
        inputs = pathlib.Path(scratch, "inputs.npz")
        started = list(commands(root, args, program, python, case, inputs))
        export = [part if part != "--serve" else "--export" for part in started[0][1]]
        subprocess.run(export, check=True)
        contestants, failures = start(started)
        if not contestants or contestants[0].name != args.ours[0]:
            raise SystemExit("our own program did not start: " + "; ".join(failures.values()))
        check(contestants, CHECKED_STEPS if case["task"] == "step" else 1, failures)
        peaks = rounds(contestants, args)
        for contestant in contestants:
            contestant.close()
    records = {c.name: c.record for c in contestants} | {n: {"failed": f} for n, f in failures.items()}
    return case | {"peak_gflops": peaks, "contestants": records}


def cases(args):
    """Yields the cases that the options describe."""
    for model, task, batch in itertools.product(args.models, args.tasks, args.batch):
        default_steps = {"baseline": 0, "doubling": 8, "nondoubling": 48 if task == "step" else 36}
        if model not in default_steps or task not in ("step", "iwelbo"):
            raise SystemExit(f"no case {model} {task}: models are {', '.join(default_steps)}, tasks step and iwelbo")
        steps = default_steps[model] if args.nca_steps is None or model == "baseline" else args.nca_steps
        batch = int(batch or (32 if model == "baseline" else 4))
        yield {"model": model, "task": task, "batch": batch, "samples": args.samples, "nca_steps": steps}


def machine():
    """Describes this machine."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda name: next((line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith(name)), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": field("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in field("flags").split()],
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def output(*command, cwd):
    """Returns a command's output, or "?" if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "?"


def run(root, args):
    all_cases = list(cases(args))
    program = build(root)
    python = None
    if args.peers:
        python = subprocess.run([root / "tools/peers/setup", "--quiet"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    result = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": output("git", "describe", "--always", "--dirty", cwd=root),
        "rustc": output("rustc", "--version", cwd=root),
        "machine": machine(),
        "cases": [],
    }
    if result["machine"]["load"] > 0.5:
        say(f"warning: the machine is not idle (load {result['machine']['load']:.1f}): the times will be too long")
    for case in all_cases:
        say(f"{case['model']} {case['task']}, batch {case['batch']}")
        result["cases"].append(run_case(root, args, program, python, case))
    return result
