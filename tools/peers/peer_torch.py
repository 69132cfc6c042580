"""The three models, a training step and the IWELBO in PyTorch. Options: eager or torch.compile, f32 or bf16 autocast, and either
memory format."""

import contextlib
import math
import platform

import torch
from torch import nn
from torch.nn import functional as F


def with_weights(layer, case, name):
    """Returns the layer with the weights of that name."""
    weight, bias = (torch.from_numpy(case.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
    if isinstance(layer, nn.ConvTranspose2d):
        # PyTorch's transposed convolution has the input channels first, and a kernel flipped in both directions.
        weight = weight.flip(2, 3).transpose(0, 1)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias.reshape(-1))
    return layer


def conv(case, name, *args, kind=nn.Conv2d, **kwargs):
    out, into, size, _ = case.weights[f"{name}.weight"].shape
    return with_weights(kind(into, out, size, *args, **kwargs), case, name)


def linear(case, name):
    out, into = case.weights[f"{name}.weight"].shape
    return with_weights(nn.Linear(into, out), case, name)


def encoder(case):
    layers = []
    for i in range(case.layers("encoder.conv")):
        layers += [conv(case, f"encoder.conv{i}", stride=1 if i == 0 else 2, padding=2), nn.ELU()]
    return nn.Sequential(*layers, nn.Flatten(), linear(case, "encoder.linear"))


def baseline(case):
    layers = [linear(case, "decoder.linear"), nn.Unflatten(1, (512, 2, 2))]
    last = case.layers("decoder.conv") - 1
    up = {"kind": nn.ConvTranspose2d}
    for i in range(last):
        layers += [conv(case, f"decoder.conv{i}", stride=2, padding=2, output_padding=1, **up), nn.ELU()]
    layers += [conv(case, f"decoder.conv{last}", stride=1, padding=4, **up), nn.ConstantPad2d(2, -math.inf)]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, case, name):
        super().__init__()
        self.conv0, self.conv1 = (conv(case, f"{name}.conv{i}") for i in (0, 1))

    def forward(self, x):
        return x + self.conv1(F.elu(self.conv0(x)))


class Step(nn.Module):
    def __init__(self, case):
        super().__init__()
        layers = [conv(case, "cell.conv0", padding=1)]
        if case.model == "doubling":
            layers += [Residual(case, f"cell.block{b}") for b in range(case.layers("cell.block") // 2)]
        else:
            layers.append(nn.ELU())
        self.update = nn.Sequential(*layers, conv(case, "cell.conv1"))

    def forward(self, z):
        return z + self.update(z)


class Automaton(nn.Module):
    def __init__(self, case, memory_format):
        super().__init__()
        self.step = Step(case)
        self.nca_steps = case.nca_steps
        self.doublings = 5 if case.model == "doubling" else 0
        self.memory_format = memory_format

    def forward(self, z):
        side = 1 if self.doublings else 32
        z = z[:, :, None, None].expand(-1, -1, side, side).contiguous(memory_format=self.memory_format)
        for _ in range(max(self.doublings, 1)):
            if self.doublings:
                z = F.interpolate(z, scale_factor=2, mode="nearest")
            for _ in range(self.nca_steps):
                z = self.step(z)
        return z[:, :1]


class Vae(nn.Module):
    def __init__(self, case, memory_format):
        super().__init__()
        self.encoder = encoder(case)
        self.decoder = baseline(case) if case.model == "baseline" else Automaton(case, memory_format)


def log_likelihood(x, logits):
    logits = logits.float()
    return (torch.where(x > 0.5, logits, 0.0) - F.softplus(logits)).sum(dim=(1, 2, 3))


def negative_elbo(model, x, eps):
    mean, logvar = model.encoder(x).float().chunk(2, dim=1)
    z = mean + torch.exp(0.5 * logvar) * eps[:, 0]
    kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1.0).sum(dim=1)
    return (kl - log_likelihood(x, model.decoder(z))).mean()


def negative_iwelbo(model, x, eps):
    samples = eps.shape[1]
    mean, logvar = (h[:, None] for h in model.encoder(x).float().chunk(2, dim=1))
    z = mean + torch.exp(0.5 * logvar) * eps
    logits = model.decoder(z.flatten(0, 1))
    likelihood = log_likelihood(x.repeat_interleave(samples, dim=0), logits).reshape(-1, samples)
    weights = likelihood + 0.5 * (logvar + eps**2 - z**2).sum(dim=2)
    return (math.log(samples) - weights.logsumexp(dim=1)).mean()


class Peer:
    def __init__(self, case, options, device="cpu"):
        unknown = options - {"bf16", "compile", "nhwc", "graph"}
        if unknown:
            raise SystemExit(f"unknown options of torch {unknown}: there are bf16, compile, nhwc and graph")
        if "graph" in options and (device == "cpu" or case.task != "step"):
            raise SystemExit("torch's option graph is for training steps on GPUs")
        memory_format = torch.channels_last if "nhwc" in options else torch.contiguous_format
        self.options = options
        self.device = device
        self.model = Vae(case, memory_format).to(device=device, memory_format=memory_format)
        self.rows = [
            (torch.from_numpy(x).to(device).contiguous(memory_format=memory_format), torch.from_numpy(e).to(device))
            for x, e in zip(case.images, case.eps)
        ]
        self.training = case.task == "step"
        self.objective = negative_elbo if self.training else negative_iwelbo
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True, capturable="graph" in options)
        self.step = 0

    def compile(self):
        """Compiles the model. Of an automaton it compiles one step, because compiling the unrolled steps would take minutes."""
        if "compile" not in self.options:
            return
        if isinstance(self.model.decoder, Automaton):
            # Each grid size is compiled separately.
            torch._dynamo.config.recompile_limit = 32
            self.model.encoder.compile(dynamic=False)
            self.model.decoder.step.compile(dynamic=False)
        else:
            self.objective = torch.compile(self.objective, dynamic=False)
        # torch.compile compiles at the first call. This call does not update the weights.
        self.value(self.rows[0])
        self.optimiser.zero_grad()

    def value(self, row):
        precision = torch.autocast(self.device, torch.bfloat16) if "bf16" in self.options else contextlib.nullcontext()
        if not self.training:
            with torch.no_grad(), precision:
                return self.objective(self.model, *row)
        with precision:
            loss = self.objective(self.model, *row)
        loss.backward()
        return loss.detach()

    def run(self, count):
        values = []
        for _ in range(count):
            if not self.training:
                values.append(self.value(self.rows[0]))
                continue
            self.optimiser.zero_grad()
            values.append(self.value(self.rows[self.step % len(self.rows)]))
            nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
            self.optimiser.step()
            self.step += 1
        return [float(v) for v in values]

    def versions(self):
        threads = torch.get_num_threads()
        return {"python": platform.python_version(), "torch": torch.__version__, "threads": threads}


class DevicePeer(Peer):
    """A peer on a GPU, with matmuls and convolutions in TF32 where they are not in bf16, as XLA computes them there."""

    def __init__(self, case, options, device):
        torch.set_float32_matmul_precision("high")
        # cuDNN's convolutions take TF32 by default. This measures which of its kernels is the fastest.
        torch.backends.cudnn.benchmark = True
        super().__init__(case, options, device)

    def compile(self):
        super().compile()
        if "graph" in self.options:
            self.capture()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def capture(self):
        """Records a whole training step as a CUDA graph, so that the host starts one thing instead of thousands of kernels."""
        self.inputs = [tensor.clone() for tensor in self.rows[0]]
        before = [tensor.clone() for tensor in self.model.parameters()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Allocates the optimiser's moments, and lets cuDNN choose its kernels.
            for _ in range(3):
                self.whole_step(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.loss = self.whole_step(self.inputs)
        # Undoes the warm-up's updates.
        with torch.no_grad():
            for tensor, value in zip(self.model.parameters(), before):
                tensor.copy_(value)
            for state in self.optimiser.state.values():
                for tensor in state.values():
                    tensor.zero_()

    def whole_step(self, row):
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.value(row)
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimiser.step()
        return loss

    def run(self, count):
        if "graph" not in self.options:
            return super().run(count)
        values = []
        for _ in range(count):
            for ours, given in zip(self.inputs, self.rows[self.step % len(self.rows)]):
                ours.copy_(given)
            self.graph.replay()
            values.append(self.loss.clone())
            self.step += 1
        return [float(v) for v in values]

    def memory(self):
        return torch.cuda.max_memory_allocated()

    def versions(self):
        return super().versions() | {"cuda": torch.version.cuda}
