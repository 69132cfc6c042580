"""Writes tests/goldens/logistic_mixture.json: log-probabilities of pixels under PixelCNN++'s mixture of logistics.

usage: python tools/goldens/logistic_mixture.py > tests/goldens/logistic_mixture.json

Needs NumPy alone, and computes in f64. The formula is that of Salimans, Karpathy, Chen, Kingma, "PixelCNN++", 2017, with the
thresholds of the paper's code: values beyond +-0.999 are at the edge, and a probability of at most 1e-5 is replaced by the density
at the middle of the level times its width. The outputs are in the order of `LogisticMixture`, and are exact in f32.
"""

import json

import numpy as np


def softplus(x):
    return np.logaddexp(0, x)


def channel(x, mean, log_scale):
    """Returns the log-probability of a value, and whether the paper's code approximates it."""
    log_scale = max(log_scale, -7.0)
    rate = np.exp(-log_scale)
    centred = x - mean
    plus, minus, middle = rate * (centred + 1 / 255), rate * (centred - 1 / 255), rate * centred
    if x < -0.999:
        return plus - softplus(plus), False
    if x > 0.999:
        return -softplus(minus), False
    delta = 1 / (1 + np.exp(-plus)) - 1 / (1 + np.exp(-minus))
    if delta > 1e-5:
        return np.log(delta), False
    return middle - log_scale - 2 * softplus(middle) - np.log(127.5), True


def pixel(levels, outputs, k):
    """Returns the log-probability of a pixel, and whether one of its parts is approximated."""
    c = len(levels)
    x = levels / 127.5 - 1
    logits, rest = outputs[:k], outputs[k:]
    means, log_scales, coefficients = rest[: c * k].reshape(c, k), rest[c * k : 2 * c * k].reshape(c, k), rest[2 * c * k :]
    means = means.copy()
    if c == 3:
        green_red, blue_red, blue_green = np.tanh(coefficients.reshape(3, k))
        means[1] += green_red * x[0]
        means[2] += blue_red * x[0] + blue_green * x[1]
    weights = logits - np.logaddexp.reduce(logits)
    parts = [[channel(x[i], means[i, j], log_scales[i, j]) for i in range(c)] for j in range(k)]
    log_probs = [sum(p for p, _ in row) for row in parts]
    return np.logaddexp.reduce(weights + log_probs), any(rough for row in parts for _, rough in row)


def cases(rng, c, k, count):
    for i in range(count):
        levels = rng.integers(0, 256, c)
        levels[rng.random(c) < 0.25] = 0
        levels[rng.random(c) < 0.25] = 255
        means = rng.uniform(-1.2, 1.2, c * k)
        if i % 2:
            # Near the observed value, where probabilities are not small.
            means = np.repeat(levels / 127.5 - 1, k) + 0.05 * rng.standard_normal(c * k)
        parts = [rng.normal(0, 2, k), means, rng.uniform(-5, 1, c * k)]
        if c == 3:
            parts.append(rng.normal(0, 0.1 if i % 2 else 1, 3 * k))
        outputs = np.concatenate(parts).astype(np.float32).astype(np.float64)
        log_prob, rough = pixel(levels, outputs, k)
        yield {"levels": levels.tolist(), "outputs": outputs.tolist(), "log_prob": log_prob, "approximate": rough}


def main():
    rng = np.random.default_rng(0)
    made = [{"channels": c, "components": k, "pixels": list(cases(rng, c, k, 24))} for c, k in [(1, 2), (3, 3)]]
    # A line for each pixel.
    groups = []
    for group in made:
        rows = ",\n".join(json.dumps(row) for row in group["pixels"])
        head = f'{{"channels": {group["channels"]}, "components": {group["components"]}, "pixels": [\n'
        groups.append(f"{head}{rows}\n]}}")
    print("[" + ",\n".join(groups) + "]")


main()
