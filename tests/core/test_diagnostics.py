import pytest
import torch

from rws_ray.core.diagnostics import activity_entropy, layer_divergences, log_marginal, unit_activity, unit_effects
from rws_ray.core.streams import Stream, generator
from tests.core.enumeration import (
    binary_states,
    enumerate_machine,
    exact_posterior_machine,
    random_machine,
    state_index,
    within_standard_errors,
)

LAYERS = [3, 2]


def exact_divergences(machine, x):
    """KL(p‖q) and its reverse of each of two layers, given one row, by sums over all states: two (2,) tensors."""
    exact = enumerate_machine(machine, x)
    log_p, log_q = exact.log_posterior[0], exact.log_q[0]
    first = state_index(binary_states(sum(LAYERS))[:, : LAYERS[0]])
    p_1, q_1 = (torch.zeros(2 ** LAYERS[0]).double().index_add(0, first, each.exp()) for each in (log_p, log_q))
    found = []
    for log_a, log_b, a_1, b_1 in ((log_p, log_q, p_1, q_1), (log_q, log_p, q_1, p_1)):
        total, lower = (log_a.exp() * (log_a - log_b)).sum(), (a_1 * (a_1.log() - b_1.log())).sum()
        found.append(torch.stack([lower, total - lower]))
    return found


@pytest.mark.parametrize("direction", [0, 1])
def test_the_divergences_of_layers_are_those_of_enumeration(direction):
    machine = random_machine(4, LAYERS, seed=3, scale=1.0)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    expected = exact_divergences(machine, x)[direction]
    found = layer_divergences(machine, x.expand(4000, 4), num_samples=400)[direction]
    assert (expected > 0.02).all()
    assert within_standard_errors(found, expected)


def test_an_exact_q_has_no_divergence_in_either_direction():
    machine = exact_posterior_machine([3, 3])
    for found in layer_divergences(machine, binary_states(3), num_samples=2000):
        assert found.abs().max() < 0.2
        assert found.mean(0).abs().max() < 0.05


def test_the_marginal_of_a_layer_is_that_of_enumeration():
    machine = random_machine(4, LAYERS, seed=1)
    h = binary_states(3)
    top = binary_states(2)
    prior = machine.prior.observe(top, top.new_empty(4, 0)).log_prob
    joint = machine.p[1].observe(h.unsqueeze(1), top.expand(8, 4, 2)).log_prob + prior
    found = log_marginal(machine, 1, h, 20_000, Stream(generator(0, "test")))
    torch.testing.assert_close(found, torch.logsumexp(joint, 1), atol=0.02, rtol=0)
    exact_at_the_top = log_marginal(machine, 2, top, 1, Stream(generator(0, "test")))
    torch.testing.assert_close(exact_at_the_top, prior[0])


def test_activity_is_the_mean_of_q_and_a_stuck_unit_has_no_entropy():
    machine = random_machine(4, LAYERS)
    with torch.no_grad():
        machine.q[0].weight[:, 1] = 0
        machine.q[0].bias[1] = -100
    x = binary_states(4)
    first, second = unit_activity(machine, x, num_samples=2000)
    expected = torch.sigmoid(machine.q[0].logits(x.unsqueeze(1))).mean((0, 1))
    torch.testing.assert_close(first, expected, atol=0.02, rtol=0)
    assert second.shape == (2,)
    entropy = activity_entropy(torch.cat([first, torch.tensor([0.5])]))
    assert entropy[1] == 0
    assert entropy[3] == pytest.approx(1)


def test_the_effect_of_a_unit_is_what_switching_it_on_adds():
    machine = random_machine(6, LAYERS, scale=1.0)
    with torch.no_grad():
        machine.p[0].weight.zero_()
        machine.p[0].weight[1, 2] = 200.0
        machine.p[0].bias.fill_(-100.0)
    effects = unit_effects(machine, 1, [0, 1])
    expected = torch.zeros(2, 6, dtype=torch.float64)
    expected[1, 2] = 1
    assert torch.equal(effects, expected)
