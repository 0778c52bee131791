# SPDX-License-Identifier: Apache-2.0
"""arXiv 2605.11538, sections 2.1 and 2.3, as slow float64 loops over Python numbers, written from the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Reference:
    weights: list[list[float]]
    covariance: list[list[float]]
    sigma: list[float]


def advantages(rewards: list[float], groups: list, normalise: bool = True, epsilon: float = 1e-6) -> list[float]:
    """A_i = (r_i - mean r) / (std r + eps) over the responses of the group (section 2.1; verl's std has n - 1)."""
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        members = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        if len(members) == 1:
            mean, std = 0.0, 1.0
        else:
            mean = sum(members) / len(members)
            std = math.sqrt(sum((r - mean) ** 2 for r in members) / (len(members) - 1))
        result.append((reward - mean) / (std + epsilon) if normalise else reward - mean)
    return result


def weighted_advantages(
    log_probs: list[list[float]], advantages: list[float], mask: list[list[bool]], groups: list, centre: bool = False
) -> list[list[float]]:
    """w~_it A_i; with ``centre`` less b(x) = mean_j w~(x, A_j) A_j over the group's responses (docs/method.md)."""
    reference = weights(log_probs, advantages, mask, groups)
    result = [[w * a for w in row] for row, a in zip(reference.weights, advantages, strict=True)]
    if not centre:
        return result
    for i, row in enumerate(mask):
        sigma = reference.sigma[i]
        members = [j for j, group in enumerate(groups) if group == groups[i] and any(mask[j])]
        if sigma == 0 or i not in members:
            continue
        mean_advantage = sum(advantages[j] for j in members) / len(members)
        tokens = [(j, s) for j in members for s in range(len(row)) if mask[j][s]]
        total = sum(math.exp(-(reference.covariance[j][s] ** 2) / (2 * sigma**2)) for j, s in tokens)
        own = [log_probs[i][t] for t in range(len(row)) if row[t]]
        for t in range(len(row)):
            if row[t]:
                x = log_probs[i][t] - sum(own) / len(own)
                b = 0.0
                for j in members:
                    w = math.exp(-((x * (advantages[j] - mean_advantage)) ** 2) / (2 * sigma**2)) * len(tokens) / total
                    b += w * advantages[j] / len(members)
                result[i][t] -= b
    return result


def weights(
    log_probs: list[list[float]],
    advantages: list[float],
    mask: list[list[bool]],
    groups: list,
    log_prob_mean: str = "response",
) -> Reference:
    """c_it, sigma and the normalised w~_it of section 2.3, group by group."""
    rows = range(len(log_probs))
    out_w = [[0.0] * len(row) for row in log_probs]
    out_c = [[0.0] * len(row) for row in log_probs]
    out_sigma = [0.0] * len(log_probs)
    for group in dict.fromkeys(groups):
        members = [i for i in rows if groups[i] == group and any(mask[i])]
        tokens = [(i, t) for i in members for t in range(len(mask[i])) if mask[i][t]]
        if not tokens:
            continue
        mean_advantage = sum(advantages[i] for i in members) / len(members)
        mean_log_prob = {}
        for i in members:
            own = [log_probs[i][t] for t in range(len(mask[i])) if mask[i][t]]
            mean_log_prob[i] = sum(own) / len(own)
        if log_prob_mean == "group":
            everything = sum(log_probs[i][t] for i, t in tokens) / len(tokens)
            mean_log_prob = dict.fromkeys(members, everything)
        c = {(i, t): (log_probs[i][t] - mean_log_prob[i]) * (advantages[i] - mean_advantage) for i, t in tokens}
        n = len(tokens)
        mean_c = sum(c.values()) / n
        sigma = math.sqrt(sum((value - mean_c) ** 2 for value in c.values()) / n)
        w = {it: 1.0 if sigma == 0 else math.exp(-(value**2) / (2 * sigma**2)) for it, value in c.items()}
        total = sum(w.values())
        for i, t in tokens:
            out_w[i][t] = w[i, t] * n / total
            out_c[i][t] = c[i, t]
        for i in rows:
            if groups[i] == group:
                out_sigma[i] = sigma
    return Reference(out_w, out_c, out_sigma)


def live_gradient(weights: list[list[float]], advantages: list[float], mask: list[list[bool]]) -> list[list[float]]:
    """d loss / d log pi_it = -w~_it A_i / (R |o_i|) on policy (ratio 1), for R responses, the weights held fixed."""
    rows = range(len(advantages))
    lengths = [max(sum(map(bool, row)), 1) for row in mask]
    return [[-w * advantages[i] / (len(advantages) * lengths[i]) for w in weights[i]] for i in rows]


def released_gradient(
    log_probs: list[list[float]], advantages: list[float], mask: list[list[bool]], width: int
) -> list[list[float]]:
    """The gradient of the authors' objective for one group, through weights, sigma and mean, written out.

    With A_i of mean 0, p the positions of the group (``width`` a response, that of the longest in the micro-batch),
    S = sum w, N its tokens: L = -(p / S) sum_it w_it A_i / (G |o_i|) in value, w = exp(-z^2 / 2), z = c / sigma. The
    ratio gives -(p / S) w_it A_i / (G |o_i|); the weights give sum_it (dL / dw_it) dw_it, dL / dw_it =
    -(p / S) (A_i / (G |o_i|) - M), M the w-weighted mean of A_i / (G |o_i|).
    """
    rows = range(len(log_probs))
    tokens = [(i, t) for i in rows for t in range(len(mask[i])) if mask[i][t]]
    lengths = [max(sum(map(bool, row)), 1) for row in mask]
    positions, n = width * len(mask), len(tokens)
    mean_advantage = sum(advantages) / len(advantages)
    a = [advantage - mean_advantage for advantage in advantages]
    mean = [sum(log_probs[i][t] for t in range(len(mask[i])) if mask[i][t]) / lengths[i] for i in rows]
    c = {(i, t): (log_probs[i][t] - mean[i]) * a[i] for i, t in tokens}
    mean_c = sum(c.values()) / n
    variance = sum((value - mean_c) ** 2 for value in c.values()) / n
    w = {it: math.exp(-(value**2) / (2 * variance)) for it, value in c.items()}
    total = sum(w.values())
    share = [advantages[i] / (len(advantages) * lengths[i]) for i in rows]
    weighted_share = sum(w[i, t] * share[i] for i, t in tokens) / total
    to_weight = {(i, t): -positions / total * (share[i] - weighted_share) for i, t in tokens}
    # dw = -w c dc / v + w c^2 dv / (2 v^2), with dv = 2 (c - mean c) dc / n.
    to_variance = sum(to_weight[it] * w[it] * c[it] ** 2 / (2 * variance**2) for it in tokens)
    to_c = {it: -to_weight[it] * w[it] * c[it] / variance + to_variance * 2 * (c[it] - mean_c) / n for it in tokens}
    gradient = [[0.0] * len(row) for row in log_probs]
    for i in rows:
        own = [t for t in range(len(mask[i])) if mask[i][t]]
        mean_to_c = sum(to_c[i, t] for t in own) / lengths[i]
        for t in own:
            gradient[i][t] = -positions / total * w[i, t] * share[i] + a[i] * (to_c[i, t] - mean_to_c)
    return gradient
