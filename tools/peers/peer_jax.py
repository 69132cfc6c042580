"""The three models, a training step and the IWELBO in plain JAX and Equinox. Modules compute one image, vmap adds the batch, and a
scan with checkpointing runs the automaton's steps. Everything is compiled as one program."""

import functools
import math
import platform

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

OPTIMISER = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-4))


def with_weights(layer, case, name):
    """Returns the layer with the weights of that name."""
    weights = [jnp.asarray(case.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
    return eqx.tree_at(lambda l: (l.weight, l.bias), layer, tuple(weights))


def conv(case, name, *args, kind=eqx.nn.Conv2d, **kwargs):
    out, into, size, _ = case.weights[f"{name}.weight"].shape
    return with_weights(kind(into, out, size, *args, **kwargs, key=jax.random.key(0)), case, name)


def linear(case, name):
    out, into = case.weights[f"{name}.weight"].shape
    return with_weights(eqx.nn.Linear(into, out, key=jax.random.key(0)), case, name)


class Encoder(eqx.Module):
    convs: list
    linear: eqx.nn.Linear

    def __init__(self, case):
        count = case.layers("encoder.conv")
        self.convs = [conv(case, f"encoder.conv{i}", stride=1 if i == 0 else 2, padding=2) for i in range(count)]
        self.linear = linear(case, "encoder.linear")

    def __call__(self, x):
        for layer in self.convs:
            x = jax.nn.elu(layer(x))
        return jnp.split(self.linear(x.reshape(-1)), 2)


class Baseline(eqx.Module):
    linear: eqx.nn.Linear
    convs: list

    def __init__(self, case):
        up = functools.partial(conv, case, kind=eqx.nn.ConvTranspose2d)
        last = case.layers("decoder.conv") - 1
        self.linear = linear(case, "decoder.linear")
        self.convs = [up(f"decoder.conv{i}", stride=2, padding=2, output_padding=1) for i in range(last)]
        self.convs.append(up(f"decoder.conv{last}", stride=1, padding=4))

    def __call__(self, z):
        h = self.linear(z).reshape(512, 2, 2)
        for layer in self.convs[:-1]:
            h = jax.nn.elu(layer(h))
        return jnp.pad(self.convs[-1](h), ((0, 0), (2, 2), (2, 2)), constant_values=-jnp.inf)


class Residual(eqx.Module):
    conv0: eqx.nn.Conv2d
    conv1: eqx.nn.Conv2d

    def __call__(self, x, *, key=None):
        return x + self.conv1(jax.nn.elu(self.conv0(x)))


class Automaton(eqx.Module):
    """Both VNCAs. They differ in the layers of the update rule and in the number of doublings."""

    update: eqx.nn.Sequential
    doublings: int = eqx.field(static=True)
    nca_steps: int = eqx.field(static=True)

    def __init__(self, case):
        layers = [conv(case, "cell.conv0", padding=1)]
        if case.model == "doubling":
            blocks = case.layers("cell.block") // 2
            layers += [Residual(*(conv(case, f"cell.block{b}.conv{i}") for i in (0, 1))) for b in range(blocks)]
        else:
            layers.append(eqx.nn.Lambda(jax.nn.elu))
        layers.append(conv(case, "cell.conv1"))
        self.update = eqx.nn.Sequential(layers)
        self.doublings = 5 if case.model == "doubling" else 0
        self.nca_steps = case.nca_steps

    def steps(self, z):
        @jax.checkpoint
        def step(z, _):
            return z + self.update(z), None

        return jax.lax.scan(step, z, None, length=self.nca_steps)[0]

    def __call__(self, z):
        if self.doublings == 0:
            return self.steps(jnp.broadcast_to(z[:, None, None], (z.shape[0], 32, 32)))[:1]
        z = z[:, None, None]
        for _ in range(self.doublings):
            z = self.steps(z.repeat(2, axis=1).repeat(2, axis=2))
        return z[:1]


class Vae(eqx.Module):
    encoder: Encoder
    decoder: eqx.Module

    def __init__(self, case):
        self.encoder = Encoder(case)
        self.decoder = Baseline(case) if case.model == "baseline" else Automaton(case)


def log_likelihood(x, logits):
    return jnp.sum(jnp.where(x > 0.5, logits, 0.0) - jax.nn.softplus(logits))


def negative_elbo(model, x, eps):
    mean, logvar = model.encoder(x)
    z = mean + jnp.exp(0.5 * logvar) * eps[0]
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - logvar - 1.0)
    return kl - log_likelihood(x, model.decoder(z))


def negative_iwelbo(model, x, eps):
    mean, logvar = model.encoder(x)

    def log_weight(eps):
        z = mean + jnp.exp(0.5 * logvar) * eps
        return log_likelihood(x, model.decoder(z)) + 0.5 * jnp.sum(logvar + eps**2 - z**2)

    return math.log(eps.shape[0]) - jax.nn.logsumexp(jax.vmap(log_weight)(eps))


def over_batch(objective):
    return lambda model, x, eps: jnp.mean(jax.vmap(functools.partial(objective, model))(x, eps))


@eqx.filter_jit(donate="all-except-first")
def train(inputs, model, moments):
    loss, gradients = eqx.filter_value_and_grad(over_batch(negative_elbo))(model, *inputs)
    updates, moments = OPTIMISER.update(gradients, moments)
    return loss, eqx.apply_updates(model, updates), moments


@eqx.filter_jit
def evaluate(inputs, model):
    return over_batch(negative_iwelbo)(model, *inputs)


class Peer:
    def __init__(self, case):
        self.rows = [(jnp.asarray(x), jnp.asarray(e)) for x, e in zip(case.images, case.eps)]
        self.state = [Vae(case)]
        self.function = evaluate
        self.step = 0
        if case.task == "step":
            self.state.append(OPTIMISER.init(eqx.filter(self.state[0], eqx.is_inexact_array)))
            self.function = train

    def compile(self):
        self.function = self.function.lower(self.rows[0], *self.state).compile()

    def run(self, count):
        values = []
        for _ in range(count):
            if len(self.state) == 1:
                value = self.function(self.rows[0], *self.state)
            else:
                value, *self.state = self.function(self.rows[self.step % len(self.rows)], *self.state)
            values.append(value)
            self.step += 1
        jax.block_until_ready(self.state)
        return [float(v) for v in values]

    def versions(self):
        return {"python": platform.python_version(), "jax": jax.__version__, "equinox": eqx.__version__}


class DevicePeer(Peer):
    """A peer on a device with its own memory, whose peak it reports."""

    def memory(self):
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
