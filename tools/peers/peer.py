"""A contestant of tools/bench in another framework. It reports when it is ready, and answers each command on stdin with JSON.

usage: peer.py NAME MODEL TASK INPUTS [NCA_STEPS [DEVICE [wait]]]

NAME is `jax`, or `torch` followed by any of `-bf16` (autocast), `-compile` (torch.compile), `-nhwc` (channels_last) and, on GPUs,
`-graph` (the whole step as one CUDA graph). MODEL is baseline, doubling or nondoubling, TASK step or iwelbo. DEVICE is PyTorch's,
cpu or cuda; JAX takes the one of JAX_PLATFORMS. INPUTS is a file that bench_step --export wrote. It contains
weights, images, the indices of each step's images, and each step's noise. `run N` runs N steps. The end of stdin ends the process.
With `wait` it loads its packages, and goes on when a line comes.
"""

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np


@dataclasses.dataclass
class Case:
    model: str
    task: str
    nca_steps: int
    weights: dict
    """Arrays by name. Convolutions have weights (out, in, kh, kw) and biases (out, 1, 1), linear layers weights (out, in)."""
    images: np.ndarray
    """The images of each step, f32 (steps, batch, 1, 32, 32)."""
    eps: np.ndarray
    """The noise of each step, f32 (steps, batch, samples, Z)."""

    @staticmethod
    def load(model, task, nca_steps, path):
        """Reads the inputs."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        pixels = arrays["bench.pixels"][arrays["bench.order"]].astype(np.float32)
        images = np.pad(pixels, [(0, 0), (0, 0), (2, 2), (2, 2)])[:, :, None]
        weights = {n: a for n, a in arrays.items() if not n.startswith("bench.") and n != "meta"}
        return Case(model, task, nca_steps, weights, images, arrays["bench.eps"])

    def layers(self, prefix):
        """Returns the number of layers `prefix0`, `prefix1`, ..."""
        return sum(name.startswith(prefix) and name.endswith(".weight") for name in self.weights)

    @property
    def latent(self):
        return self.eps.shape[-1]


def peak_memory():
    """Returns the peak resident memory of this process since the last reset, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def reset_peak_memory():
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then includes the memory of compiling


def write_line(out, **values):
    print(json.dumps(values), file=out, flush=True)


def main():
    name, model, task, path = sys.argv[1:5]
    nca_steps = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    device = sys.argv[6] if len(sys.argv) > 6 else "cpu"
    # Messages that libraries print must not mix with the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    case = Case.load(model, task, nca_steps, path)
    if name == "jax":
        import peer_jax

        on_host = peer_jax.jax.default_backend() == "cpu"
        peer = (peer_jax.Peer if on_host else peer_jax.DevicePeer)(case)
    else:
        import peer_torch

        if sys.argv[7:] == ["wait"] and not sys.stdin.readline():
            return
        kind = peer_torch.Peer if device == "cpu" else peer_torch.DevicePeer
        peer = kind(case, set(name.split("-")[1:]), device)
    began = time.perf_counter()
    peer.compile()
    compile_seconds = time.perf_counter() - began
    # Some peers report the memory of their device instead.
    memory = getattr(peer, "memory", peak_memory)
    compile_memory = peak_memory()
    reset_peak_memory()
    write_line(out, ready=True, compile_seconds=compile_seconds, compile_memory=compile_memory, versions=peer.versions())
    for line in sys.stdin:
        command, count = line.split()
        assert command == "run", line
        began = time.perf_counter()
        values = peer.run(int(count))
        seconds = time.perf_counter() - began
        write_line(out, seconds=seconds, values=values, memory=memory())


if __name__ == "__main__":
    main()
