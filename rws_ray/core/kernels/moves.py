"""Moves of a parameter vector, each in one pass over it: momentum and Adam, and the running average that follows."""

from __future__ import annotations

import numpy as np

from rws_ray.core.kernels.jit import compiled, inlined

_f = np.float32


@inlined
def _follow(follower, leader, share):  # type: ignore[no-untyped-def]
    """`follower` moved by `share` of the way to `leader`."""
    return follower + share * (leader - follower)


@compiled("void(float32[::1], float32[::1], float32)")
def follow(average_n, theta_n, share):  # type: ignore[no-untyped-def]
    """The average goes `share` of its way to θ."""
    for i in range(len(average_n)):
        average_n[i] = _follow(average_n[i], theta_n[i], share)


@compiled("void(float32[::1], float32[::1], float32[::1], float32, float32)")
def momentum(theta_n, velocity_n, gradient_n, rate, taken):  # type: ignore[no-untyped-def]
    """d ← d + taken · (rate · g − d), θ ← θ − d."""
    for i in range(len(theta_n)):
        moved = _follow(velocity_n[i], rate * gradient_n[i], taken)
        velocity_n[i] = moved
        theta_n[i] -= moved


@compiled("void(float32[::1], float32[::1], float32[::1], float32[::1], float32, float32, float32, float32, float32)")
def adam(theta_n, mean_n, square_n, gradient_n, rate, correction, taken_mean, taken_square, epsilon):  # type: ignore[no-untyped-def]
    """θ ← θ − rate · m / (√(s / correction) + ε), m and s running means of g and g²."""
    inverse = _f(1) / correction
    for i in range(len(theta_n)):
        g = gradient_n[i]
        mean, square = _follow(mean_n[i], g, taken_mean), _follow(square_n[i], g * g, taken_square)
        mean_n[i], square_n[i] = mean, square
        theta_n[i] -= rate * mean / (np.sqrt(square * inverse) + epsilon)
