"""Every method's forward pass in python floats, one value at a time, written from the papers' formulas.

``WEIGHTS[method](filters, bits, scale)`` takes a list of filters, each a list of weights;
``ACTIVATIONS[method](x, bits, scale)`` a list of numbers. ``scale`` is the learned scale of a method that has one.
"""

import math
from itertools import product
from statistics import NormalDist


def phi_cdf(u):
    return 0.5 * (1 + math.erf(u / math.sqrt(2)))


def mean(values):
    return math.fsum(values) / len(values)


def standardised(values):
    m = mean(values)
    std = math.sqrt(math.fsum((v - m) ** 2 for v in values) / (len(values) - 1))
    return [(v - m) / std for v in values]


def flat(filters):
    return [w for row in filters for w in row]


def like(filters, values):
    it = iter(values)
    return [[next(it) for _ in row] for row in filters]


def q(x, bits):
    """The papers' q_k: [0, 1] rounded to multiples of 1 / (2^k - 1)."""
    n = 2**bits - 1
    return round(n * x) / n


def ours_weights(filters, bits, scale):
    return like(filters, [2 * q(phi_cdf(u), bits) - 1 for u in standardised(flat(filters))])


def ours_activations(x, bits, scale, act_range=2.0):
    return [act_range * (2 * q(phi_cdf(v), bits) - 1) for v in x]


def uniform_weights(filters, bits, scale):
    peak = max(abs(w) for w in flat(filters))
    return [[peak * (2 * q((w / peak + 1) / 2, bits) - 1) for w in row] for row in filters]


def uniform_activations(x, bits, scale, act_range=2.0):
    return [act_range * q(min(max(v, 0.0), act_range) / act_range, bits) for v in x]


def dorefa_weights(filters, bits, scale):
    if bits == 1:
        return bwn_weights(filters, bits, scale)
    peak = max(abs(math.tanh(w)) for w in flat(filters))
    return [[2 * q(math.tanh(w) / (2 * peak) + 0.5, bits) - 1 for w in row] for row in filters]


def dorefa_activations(x, bits, scale):
    return [q(min(max(v, 0.0), 1.0), bits) for v in x]


def bwn_weights(filters, bits, scale):
    alpha = mean([abs(w) for w in flat(filters)])
    return [[alpha if w >= 0 else -alpha for w in row] for row in filters]


def bwnf_weights(filters, bits, scale):
    return [bwn_weights([row], bits, scale)[0] for row in filters]


def code_range(bits, signed):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def stepped(v, step, low, high):
    return step * round(min(max(v / step, low), high))


def step_weights(filters, bits, scale):
    return [[stepped(w, scale, *code_range(bits, True)) for w in row] for row in filters]


def step_activations(x, bits, scale):
    return [stepped(v, scale, *code_range(bits, False)) for v in x]


def apot_grid(bits):
    """Sums over the paper's sets, written out; normalised to a maximum of 1."""
    sets = {
        1: [[0, 1]],
        2: [[0, 1, 1 / 2, 1 / 4]],
        3: [[0, 1 / 2, 1 / 4, 1 / 16], [0, 1 / 8]],
        4: [[0, 1, 1 / 4, 1 / 16], [0, 1 / 2, 1 / 8, 1 / 32]],
        5: [[0, 1 / 2, 1 / 8, 1 / 64], [0, 1 / 4, 1 / 16, 1 / 128], [0, 1 / 32]],
        6: [[0, 1, 1 / 8, 1 / 64], [0, 1 / 2, 1 / 16, 1 / 128], [0, 1 / 4, 1 / 32, 1 / 256]],
    }[bits]
    sums = sorted({sum(terms) for terms in product(*sets)})
    return [s / sums[-1] for s in sums]


def nearest(v, grid):
    return min(grid, key=lambda level: (abs(level - v), level))


def apot_weights(filters, bits, scale):
    grid = apot_grid(bits - 1)
    clipped = [min(max(u / scale, -1.0), 1.0) for u in standardised(flat(filters))]
    return like(filters, [math.copysign(scale * nearest(abs(v), grid), v) for v in clipped])


def apot_activations(x, bits, scale):
    grid = apot_grid(bits)
    return [scale * nearest(min(max(v / scale, 0.0), 1.0), grid) for v in x]


def normal_mean(low, high):
    """E[z | low < Phi(z) < high] of a standard normal z."""
    density = [0.0 if p in (0, 1) else NormalDist().pdf(NormalDist().inv_cdf(p)) for p in (low, high)]
    return (density[0] - density[1]) / (high - low)


def as_multiple(value, outermost, most):
    return round(value / outermost * most) * outermost / most


def centroid_weights(filters, bits, scale):
    n, quantized = 2**bits - 1, []
    outermost = normal_mean((n - 0.5) / n, 1)
    for row in filters:
        s = math.sqrt(mean([w * w for w in row]))
        for w in row:
            code = round(n * phi_cdf(w / s))
            value = normal_mean(max(code - 0.5, 0) / n, min(code + 0.5, n) / n)
            quantized.append(s * as_multiple(value, outermost, 127))
    return like(filters, quantized)


def centroid_activations(x, bits, scale):
    n, quantized = 2**bits - 1, []
    outermost = normal_mean(0.5 + (n - 0.5) / (2 * n), 1)
    for v in x:
        code = round(n * (2 * phi_cdf(max(v, 0.0) / scale) - 1))
        value = normal_mean(0.5 + (code - 0.5) / (2 * n), 0.5 + min(code + 0.5, n) / (2 * n)) if code else 0.0
        quantized.append(scale * as_multiple(value, outermost, 255))
    return quantized


WEIGHTS = {
    "ours": ours_weights,
    "uniform": uniform_weights,
    "dorefa": dorefa_weights,
    "bwn": bwn_weights,
    "bwnf": bwnf_weights,
    "lsq": step_weights,
    "llsq": step_weights,
    "apot": apot_weights,
    "centroid": centroid_weights,
}

ACTIVATIONS = {
    "ours": ours_activations,
    "uniform": uniform_activations,
    "dorefa": dorefa_activations,
    "bwn": dorefa_activations,
    "bwnf": dorefa_activations,
    "lsq": step_activations,
    "llsq": step_activations,
    "apot": apot_activations,
    "centroid": centroid_activations,
}
