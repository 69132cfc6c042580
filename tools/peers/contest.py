"""Runs the contestants of a benchmark as processes that take turns, in rounds."""

import datetime
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading

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
    def __init__(self, name, command, limit=None, waits=False):
        """Starts the program and waits until it is ready. After `limit` seconds without an answer, now or later, it is ended.

        A peer that `waits` only loads its packages, until `begin`."""
        self.name, self.limit = name, limit
        self.errors = tempfile.TemporaryFile("w+")
        # A session of its own, so that the limit also ends the compilers that the program started.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        start_new_session=True)
        self.record = {"command": [without_folder(part) for part in command], "turns": []}
        if not waits:
            self.record |= self.answer()

    def begin(self):
        self.record |= self.ask("begin")

    def answer(self):
        late = threading.Event()
        timer = threading.Timer(self.limit or threading.TIMEOUT_MAX, lambda: (late.set(), self.kill()))
        timer.daemon = True
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            code = self.process.wait()
            if late.is_set():
                raise Failure(f"{self.name} did not answer within {self.limit:g} s")
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
            raise Failure(f"{self.name} ended with {code}: {last[0][:300]}")
        return json.loads(line)

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

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
        try:
            self.process.stdin.close()
            self.process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.kill()
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
    for name in args.ours:
        options = {"bf16": ["--precision", "bf16"]}
        unknown = set(name.split("-")[1:]) - options.keys()
        if unknown or name.split("-")[0] != "ours":
            raise SystemExit(f"unknown contestant {name!r}: ours are ours and ours-bf16")
        variant = list(itertools.chain.from_iterable(options[word] for word in name.split("-")[1:]))
        variant += ["--programs", args.programs / folder(case, "bf16" if "bf16" in name else "f32")] if args.programs else []
        yield name, [program, *ours, *variant, "--serve", inputs]
    if args.old:
        programs = ["--programs", args.programs / folder(case)] if args.programs else []
        yield "old", [args.old, *ours, *programs, "--serve", inputs]
    for name in args.peers:
        peer = [name, case["model"], case["task"], inputs, str(case["nca_steps"]), getattr(args, "peer_device", "cpu")]
        yield name, [python, root / "tools/peers/peer.py", *peer]


def folder(case, precision="f32"):
    """Returns the subfolder of a case's exported programs."""
    return f"{case['model']}-{case['task']}-{case['batch']}" + ("" if precision == "f32" else f"-{precision}")


def start(commands, limit=None):
    """Starts the contestants. Returns those that are ready, and the messages of those that failed."""
    contestants, failures = [], {}
    for name, command in commands:
        say(f"  starting {name}")
        try:
            contestants.append(Contestant(name, command, limit))
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


def trial(commands, args):
    """Runs each of these contestants alone, one after the other. Returns what each took, by name; the fastest is to take part."""
    tried = {}
    # Their packages load at the same time: loading takes longer than most trials.
    waiting = [Contestant(name, [*command, "wait"], getattr(args, "limit", None), waits=True) for name, command in commands]
    for contestant in waiting:
        name = contestant.name
        say(f"  trying {name}")
        try:
            contestant.begin()
            contestant.run(CHECKED_STEPS)
            one = contestant.run(1)["seconds"]
            steps = min(max(3, round(0.2 / one)), 100) if one < 5 else 1
            seconds = statistics.median(contestant.run(steps)["seconds"] / steps for _ in range(3 if one < 5 else 1))
            tried[name] = {"ms": seconds * 1e3, "compile_seconds": contestant.record["compile_seconds"]}
            say(f"    {seconds * 1e3:.2f} ms a step")
        except Failure as failure:
            say(f"    {failure}")
            tried[name] = {"failed": str(failure)}
        contestant.close()
    return tried


def rounds(contestants, args, failures):
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
            if contestant.name in failures:
                continue
            say(f"  round {number + 1} of {args.rounds}: {contestant.name}")
            try:
                if contestant.turn(number, 1 if contestant in slow else steps) > args.slow:
                    slow.add(contestant)
            except Failure as failure:
                if contestant is ours:
                    raise
                say(f"  {failure}")
                failures[contestant.name] = str(failure)
    return peaks


def run_case(root, args, program, python, case):
    """Runs the contestants of a case. Of the peers named in `args.trials`, the fastest takes part."""
    limit, trials = getattr(args, "limit", None), getattr(args, "trials", [])
    with tempfile.TemporaryDirectory() as scratch:
        inputs = pathlib.Path(scratch, "inputs.npz")
        commanded = list(commands(root, args, program, python, case, inputs))
        export = [part if part != "--serve" else "--export" for part in commanded[0][1]]
        subprocess.run(export, check=True)
        tried = trial([c for c in commanded if c[0] in trials], args)
        ran = {name: record["ms"] for name, record in tried.items() if "ms" in record}
        fastest = min(ran, key=ran.get, default=None)
        contestants, failures = start([c for c in commanded if c[0] not in trials or c[0] == fastest], limit)
        try:
            if not contestants or contestants[0].name != args.ours[0]:
                raise Failure("our own program did not start: " + "; ".join(failures.values()))
            check(contestants, CHECKED_STEPS if case["task"] == "step" else 1, failures)
            if not contestants or contestants[0].name != args.ours[0]:
                raise Failure("our own program failed: " + "; ".join(failures.values()))
            peaks = rounds(contestants, args, failures)
        finally:
            for contestant in contestants:
                contestant.close()
    if trials and not ran:
        failures[trials[0].split("-")[0]] = "; ".join(record["failed"] for record in tried.values())
    records = {c.name: c.record for c in contestants} | {n: {"failed": f} for n, f in failures.items()}
    return case | {"peak_gflops": peaks, "contestants": records} | ({"tried": tried} if trials else {})


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
    """Returns a command's output, or None if it fails or there is no such program."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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
        try:
            result["cases"].append(run_case(root, args, program, python, case))
        except Failure as failure:
            raise SystemExit(str(failure)) from failure
    return result
