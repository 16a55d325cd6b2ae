"""Wake-sleep, NVIL, VIMCO and BiHM on machines small enough to enumerate, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from enumeration import (
    Parameters,
    binary_states,
    enumerate_machine,
    enumerate_states,
    gradient,
    random_machine,
    within_standard_errors,
)
from torch import Tensor

from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.estimators.bihm import add_bihm_gradients, log_z
from rws_ray.core.estimators.nvil import Baselines, add_nvil_gradients
from rws_ray.core.estimators.vimco import add_vimco_gradients, left_out
from rws_ray.core.estimators.wake_sleep import add_wake_sleep_gradients
from rws_ray.core.streams import Stream, generator

REPEATS = 64
COPIES = 400  # of each row in a repeat
LAYERS = [2, 1]
ROWS = [3, 9]


def stream(purpose, repeat=0):
    return Stream(generator(0, purpose, repeat))


def update(machine, add, x_BD, estimator, repeat=0):
    for value in machine.parameters():
        value.grad = torch.zeros_like(value)
    info = add(machine, x_BD, estimator, stream("wake", repeat), stream("sleep", repeat))
    return {name: value.grad for name, value in machine.named_parameters()}, info


def ascents(machine, add, x_BD, estimator, copies=COPIES):
    """−gradients for one copy of the rows, in independent repeats: (REPEATS, …) by parameter name; and the bounds."""
    grads, bounds = [], []
    for repeat in range(REPEATS):
        each, info = update(machine, add, x_BD.repeat(copies, 1), estimator, repeat)
        grads.append({name: -value / copies for name, value in each.items()})
        bounds.append(info.log_prob / copies)
    return {name: torch.stack([each[name] for each in grads]) for name in grads[0]}, torch.stack(bounds)


def expected_bound(theta: Parameters, x_BD: Tensor, num_samples: int) -> Tensor:
    """E[log (1/K) Σ w_k] summed over rows, by the sum over all K-tuples of states."""
    exact = enumerate_states(theta, x_BD, LAYERS)
    tuples = torch.tensor(list(itertools.product(range(2 ** sum(LAYERS)), repeat=num_samples)))
    chance_BT = exact.log_q[:, tuples].sum(2).exp()
    bound_BT = torch.logsumexp(exact.log_weight[:, tuples], 2) - math.log(num_samples)
    return (chance_BT * bound_BT).sum()


def log_p_star_tilde(theta: Parameters, x_BD: Tensor) -> Tensor:
    """2 log Σ_h √(p(x, h) q(h|x)), (B,)."""
    exact = enumerate_states(theta, x_BD, LAYERS)
    return 2 * torch.logsumexp((exact.log_weight + 2 * exact.log_q) / 2, 1)


def assert_expected(draws, expected):
    assert draws.keys() == expected.keys()
    for name, value in draws.items():
        assert within_standard_errors(value, expected[name]), name


@pytest.fixture
def machine():
    return random_machine(4, LAYERS, seed=2, scale=1.0)


@pytest.fixture(name="x_BD")
def rows():
    return binary_states(4)[ROWS]


def taught(machine, x_BD, num_batches=40):
    """Baselines that have seen earlier batches and predict something, with their scale set to 1."""
    memory = Baselines(machine, 0)
    for step in range(num_batches):
        sums = torch.zeros(memory.num_sums, dtype=torch.float64)
        memory.bind(sums)
        for value in machine.parameters():
            value.grad = torch.zeros_like(value)
        streams = (stream("earlier", step), stream("sleep"))
        add_nvil_gradients(machine, x_BD.repeat(20, 1), Estimator(1), *streams, memory=memory)
        memory.update(sums / (20 * len(x_BD)), step)
    memory.state["baselines"].mul_(30)  # far from what they learnt: unbiased whatever they say
    memory.state["variance"].fill_(0.5)
    memory.bind(torch.zeros(memory.num_sums, dtype=torch.float64))
    return memory


@pytest.mark.parametrize("num_samples", [2, 3])
def test_vimcos_gradient_is_unbiased_for_the_multi_sample_bound(machine, x_BD, num_samples):
    draws, bounds = ascents(machine, add_vimco_gradients, x_BD, Estimator(num_samples))
    assert_expected(draws, gradient(lambda theta: expected_bound(theta, x_BD, num_samples), machine))
    assert within_standard_errors(bounds, expected_bound(detached(machine), x_BD, num_samples))


@pytest.mark.parametrize("num_samples", [1, 3])
def test_nvils_gradient_with_scale_one_is_unbiased_for_the_elbo(machine, x_BD, num_samples):
    memory = taught(machine, x_BD)
    assert min(memory.state["centre"].abs()) > 0.1

    def add(*arguments):
        return add_nvil_gradients(*arguments, memory=memory)

    draws, bounds = ascents(machine, add, x_BD, Estimator(num_samples))
    assert_expected(draws, gradient(lambda theta: expected_bound(theta, x_BD, 1), machine))
    assert within_standard_errors(bounds, expected_bound(detached(machine), x_BD, 1))


def detached(machine):
    return {name: value.detach() for name, value in machine.named_parameters()}


def test_nvils_layers_hear_only_what_they_can_change(machine, x_BD):
    """Layer 2's signal leaves out log p(x|h1) − log q(h1|x); with all of it the variance would be larger."""
    from rws_ray.core.estimators.nvil import layer_signals
    from rws_ray.core.estimators.weighted import draw

    drawn = draw(machine, x_BD, 5, stream("wake"))
    first, second = layer_signals(drawn)
    torch.testing.assert_close(first, drawn.logw)
    torch.testing.assert_close(first - second, drawn.p[0].log_prob - drawn.q[0].log_prob)


def test_the_first_batch_teaches_the_baselines_alone(machine, x_BD):
    memory = Baselines(machine, 0)
    memory.bind(torch.zeros(memory.num_sums, dtype=torch.float64))
    grads, _ = update(machine, lambda *given: add_nvil_gradients(*given, memory=memory), x_BD, Estimator(1))
    assert all((value == 0).all() for name, value in grads.items() if name.startswith("q."))
    assert any((value != 0).any() for name, value in grads.items() if name.startswith("p."))


def test_nvils_running_mean_and_variance_are_those_of_the_signal_and_the_baselines_lower_its_variance(machine):
    x_BD = binary_states(4).repeat(8, 1)
    memory, spread = Baselines(machine, 0), []
    for step in range(1500):
        sums = torch.zeros(memory.num_sums, dtype=torch.float64)
        memory.bind(sums)
        update(machine, lambda *given: add_nvil_gradients(*given, memory=memory), x_BD, Estimator(1), step)
        memory.update(sums / len(x_BD), step)
        spread.append(memory.state["variance"].clone())
    exact = enumerate_machine(machine, binary_states(4))
    mean = (exact.log_q.exp() * exact.log_weight).sum(1)
    variance = (exact.log_q.exp() * exact.log_weight.square()).sum(1).mean() - mean.mean() ** 2
    early, late = torch.stack(spread[:10]).mean(0), torch.stack(spread[-100:]).mean(0)
    assert float(early[0]) == pytest.approx(float(variance), rel=0.3)
    explained = mean.var(correction=0)  # what a function of x can take away
    assert float(late[0]) == pytest.approx(float(variance - explained), rel=0.2)


def test_vimcos_control_variate_is_the_bound_with_the_geometric_mean_of_the_others():
    logw_BK = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    for row, found in zip(logw_BK, left_out(logw_BK), strict=True):
        for k in range(4):
            others = [float(row[i]) for i in range(4) if i != k]
            weights = [math.exp(each) for each in [*others, sum(others) / 3]]
            assert float(found[k]) == pytest.approx(math.log(sum(weights) / 4))


def test_vimcos_signals_stay_finite_where_weights_are_hundreds_of_nats_apart():
    assert left_out(torch.tensor([[-900.0, -100.0, -1500.0]], dtype=torch.float64)).isfinite().all()


def test_bihms_gradient_converges_to_that_of_its_bound(machine, x_BD):
    draws, bounds = ascents(machine, add_bihm_gradients, x_BD, Estimator(4000), copies=4)
    assert_expected(draws, gradient(lambda theta: log_p_star_tilde(theta, x_BD).sum(), machine))
    assert within_standard_errors(bounds, log_p_star_tilde(detached(machine), x_BD).sum())


def test_bihms_control_variate_leaves_the_mean_and_lowers_the_variance(machine, x_BD):
    plain, _ = ascents(machine, add_bihm_gradients, x_BD, Estimator(50), copies=40)
    steadied, _ = ascents(machine, add_bihm_gradients, x_BD, Estimator(50, control_variate=True), copies=40)
    for name, value in plain.items():
        assert within_standard_errors(value - steadied[name], torch.zeros(())), name
    assert sum(float(value.var(0).sum()) for name, value in steadied.items() if name.startswith("q.")) < 0.6 * sum(
        float(value.var(0).sum()) for name, value in plain.items() if name.startswith("q.")
    )


@pytest.mark.parametrize("name", ["nvil", "vimco", "bihm"])
def test_what_an_example_counts_does_not_depend_on_its_neighbours_in_the_batch(name, machine, x_BD):
    """So NVIL is centred by what earlier batches brought, never by the present one: that would bias it."""
    memory = taught(machine, x_BD)

    def add(*given):
        return FITS[name][0](*given, **({"memory": memory} if name == "nvil" else {}))

    def grads(rows):
        for value in machine.parameters():
            value.grad = torch.zeros_like(value)
        streams = [Stream([generator(0, purpose, row) for row in rows]) for purpose in ("wake", "sleep")]
        add(machine, binary_states(4)[rows], Estimator(3), *streams)
        return {key: value.grad for key, value in machine.named_parameters()}

    whole, first, second = grads([1, 7, 9]), grads([1]), grads([7, 9])
    for key, value in whole.items():
        torch.testing.assert_close(first[key] + second[key], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_log_z_is_that_of_enumeration(seed):
    machine = random_machine(4, LAYERS, seed=seed, scale=0.7)
    exact = float(torch.logsumexp(log_p_star_tilde(detached(machine), binary_states(4)), 0)) / 2
    found = log_z(machine, 20_000, 5, seed)
    assert abs(found.value - exact) < 4 * found.stderr < 0.1
    assert exact < 0  # Z ≤ 1: the bound without it lies below log p*


def test_the_log_of_z_is_biased_low_by_its_squared_error():
    machine = random_machine(4, LAYERS, seed=1, scale=0.7)
    exact = float(torch.logsumexp(log_p_star_tilde(detached(machine), binary_states(4)), 0)) / 2
    found = [log_z(machine, 10, 1, seed) for seed in range(1000)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    off, error = float(values.mean()) - exact, float(values.std()) / math.sqrt(len(values))
    assert off < -4 * error
    assert off == pytest.approx(-float(torch.tensor([each.stderr**2 for each in found]).mean()), rel=0.6)


def test_estimates_of_the_likelihood_bring_log_p_tilde_star_too(machine):
    """From the same weights, whichever chunk of them holds the largest."""
    x_BD = binary_states(4)
    chunks = [[generator(0, "likelihood", row, chunk) for row in range(16)] for chunk in range(5)]
    logw_BK = torch.cat([machine.draw_log_weights(x_BD, 100, Stream(each)) for each in chunks], 1).detach()
    assert len(set((logw_BK.argmax(1) // 100).tolist())) > 2
    found = machine.likelihood(x_BD, 500).log_star
    torch.testing.assert_close(found, 2 * (logw_BK / 2).exp().mean(1).log(), rtol=0, atol=1e-10)
    torch.testing.assert_close(machine.likelihood(x_BD, 1).log_star, machine.likelihood(x_BD, 1).log_prob)


def test_elbo_multi_sample_bound_and_log_p_come_in_this_order(machine, x_BD):
    theta = detached(machine)
    bounds = [float(expected_bound(theta, x_BD, num_samples)) for num_samples in (1, 2, 3)]
    log_p = float(enumerate_machine(machine, x_BD).log_prob.sum())
    assert bounds[0] < bounds[1] < bounds[2] < log_p
    memory = taught(machine, x_BD)
    _, elbo = ascents(machine, lambda *given: add_nvil_gradients(*given, memory=memory), x_BD, Estimator(5))
    found = [elbo.mean()]
    for num_samples in (2, 20, 200):
        found.append(ascents(machine, add_vimco_gradients, x_BD, Estimator(num_samples), copies=40)[1].mean())
    assert [*found, log_p] == sorted([*map(float, found), log_p])
    # BiHM's is a bound on log p* = log p̃* − log Z².
    assert float(log_p_star_tilde(theta, x_BD).sum()) < log_p


def test_wake_sleep_is_rws_with_one_sample_and_no_wake_q_update_to_the_bit(machine, x_BD):
    classic, info = update(machine, add_wake_sleep_gradients, x_BD, Estimator(7, 0.5, 3, True))
    reweighted, same = update(machine, add_rws_gradients, x_BD, Estimator(1, 0.0, 3))
    assert all(torch.equal(value, reweighted[name]) for name, value in classic.items())
    assert info == same


FITS = {
    "wake-sleep": (add_wake_sleep_gradients, 1),
    "rws": (add_rws_gradients, 5),
    "nvil": (add_nvil_gradients, 1),
    "vimco": (add_vimco_gradients, 5),
    "bihm": (add_bihm_gradients, 5),
}


@pytest.mark.parametrize("name", FITS)
def test_where_q_can_be_the_posterior_the_optimum_is_that_of_maximum_likelihood(name):
    """One hidden unit: its posterior is a logistic function of x, so that every estimator has the optimum of log p."""
    x_BD = binary_states(3)[[0, 0, 0, 1, 2, 3, 5, 6, 7, 7, 7, 7]]
    add, num_samples = FITS[name]
    exact = fitted(lambda machine, step: exact_step(machine, x_BD), 1200)
    memory: list[Baselines] = []

    def sampled(machine, step):
        estimator = Estimator(num_samples)
        if name != "nvil":
            return update(machine, add, x_BD.repeat(20, 1), estimator, step)
        memory.extend([] if memory else [Baselines(machine, 0)])
        sums = torch.zeros(memory[0].num_sums, dtype=torch.float64)
        memory[0].bind(sums)
        update(machine, lambda *given: add(*given, memory=memory[0]), x_BD.repeat(20, 1), estimator, step)
        return memory[0].update(sums / (20 * len(x_BD)), step)

    found = fitted(sampled, 1200)
    best, reached = (float(enumerate_machine(each, x_BD).log_prob.mean()) for each in (exact, found))
    assert reached == pytest.approx(best, abs=0.005)


def exact_step(machine, x_BD):
    grads = gradient(lambda theta: -enumerate_states(theta, x_BD, [1]).log_prob.sum(), machine)
    for key, value in machine.named_parameters():
        value.grad = grads[key]


def fitted(add, steps):
    machine = random_machine(3, [1], seed=5, scale=0.5)
    adam = torch.optim.Adam(machine.parameters(), lr=0.03)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 0.03 * 0.5 * (1 + math.cos(math.pi * step / steps))
        add(machine, step)
        adam.step()
    return machine
