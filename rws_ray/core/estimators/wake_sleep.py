"""Wake-sleep (Hinton, Dayan, Frey & Neal 1995, "The wake-sleep algorithm for unsupervised neural networks").

For each example one h ~ q(h|x), and one or more dreams (x', h') ~ p:
    p-update (wake)    ∂ log p(x, h)       ascends the ELBO, E_q[log p(x, h) − log q(h|x)], in p
    q-update (sleep)   ∂ log q(h'|x')      lowers KL(p(h|x) ‖ q(h|x)), averaged over the model's own x
The two lower different divergences, so there is no one objective; at a fixed point where q is the posterior, p is at a
stationary point of the likelihood. It is Reweighted Wake-Sleep with K = 1 and no wake q-update, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rws_ray.core.estimators.rws import add_rws_gradients
from rws_ray.core.estimators.weighted import Estimator, InputMoments, StepInfo
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream


def add_wake_sleep_gradients(
    machine: HelmholtzMachine,
    x_BD: Tensor,
    estimator: Estimator,
    wake: Stream,
    sleep: Stream,
    moments: InputMoments | None = None,
    p_is_done: Callable[[], None] = lambda: None,
) -> StepInfo:
    """As add_rws_gradients at K = 1 and wake_mix 0; of the settings, `num_dreams` counts."""
    classic = estimator._replace(num_samples=1, wake_mix=0.0, control_variate=False)
    return add_rws_gradients(machine, x_BD, classic, wake, sleep, moments, p_is_done)
