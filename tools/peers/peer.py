"""One contestant of tools/bench in another framework: it says when it is ready, and answers every line on stdin with JSON.

usage: peer.py NAME MODEL TASK INPUTS [NCA_STEPS]

NAME is `jax`, or `torch` followed by any of `-bf16` (autocast), `-compile` (torch.compile) and `-nhwc` (channels_last). MODEL
is baseline, doubling or nondoubling, TASK step or iwelbo. INPUTS is a file that bench_step --export wrote: weights, images,
which images each step takes, and the normal draws of each. `run N` makes N steps; the end of stdin ends the process.
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
    """By name; a convolution's (out, in, kh, kw), its bias (out, 1, 1), a linear layer's (out, in)."""
    images: np.ndarray
    """f32 (steps, batch, 1, 32, 32): each step's."""
    eps: np.ndarray
    """f32 (steps, batch, samples, Z)."""

    @staticmethod
    def load(model, task, nca_steps, path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        pixels = arrays["bench.pixels"][arrays["bench.order"]].astype(np.float32)
        images = np.pad(pixels, [(0, 0), (0, 0), (2, 2), (2, 2)])[:, :, None]
        weights = {n: a for n, a in arrays.items() if not n.startswith("bench.") and n != "meta"}
        return Case(model, task, nca_steps, weights, images, arrays["bench.eps"])

    def layers(self, prefix):
        """How many layers `prefix0`, `prefix1`, ... there are."""
        return sum(name.startswith(prefix) and name.endswith(".weight") for name in self.weights)

    @property
    def latent(self):
        return self.eps.shape[-1]


def most_memory():
    """The most bytes that this process had in memory, since it was asked to forget them."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def forget_most_memory():
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the memory of compiling stays in the figure


def say(out, **values):
    print(json.dumps(values), file=out, flush=True)


def main():
    name, model, task, path = sys.argv[1:5]
    nca_steps = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    # What libraries print must not come among the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    case = Case.load(model, task, nca_steps, path)
    if name == "jax":
        import peer_jax

        on_host = peer_jax.jax.default_backend() == "cpu"
        peer = (peer_jax.Peer if on_host else peer_jax.DevicePeer)(case)
    else:
        import peer_torch

        peer = peer_torch.Peer(case, set(name.split("-")[1:]))
    began = time.perf_counter()
    peer.compile()
    compile_seconds = time.perf_counter() - began
    # A device's own memory, where the peer can tell.
    memory = getattr(peer, "memory", most_memory)
    compile_memory = most_memory()
    forget_most_memory()
    say(out, ready=True, compile_seconds=compile_seconds, compile_memory=compile_memory, versions=peer.versions())
    for line in sys.stdin:
        command, count = line.split()
        assert command == "run", line
        began = time.perf_counter()
        values = peer.run(int(count))
        seconds = time.perf_counter() - began
        say(out, seconds=seconds, values=values, memory=memory())


if __name__ == "__main__":
    main()
