import math
from pathlib import Path

import numpy as np
import pytest
import torch
from enumeration import (
    binary_states,
    enumerate_machine,
    exact_posterior_machine,
    frequencies_p_value,
    joint_states,
    log_joint,
    log_q,
    parameters,
    random_machine,
    state_index,
    within_standard_errors,
)

from rws_ray.core import HelmholtzMachine
from rws_ray.core.importance import effective_sample_size, normalized_weights
from rws_ray.core.machine import total_log_prob
from rws_ray.core.streams import Stream, generator

DEPTHS = pytest.mark.parametrize("layers", [[4], [3, 2], [2, 3, 2], [2, 2, 2, 2]], ids=len)
MNIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "binarized_mnist"


def row_streams(rows):
    return Stream([generator(0, "test", row) for row in rows])


@DEPTHS
def test_log_joint_and_log_q_are_the_sums_of_the_formulas(layers):
    machine = random_machine(5, layers)
    x_BD = binary_states(5)[::3]
    h = machine.sample_posterior(x_BD, 6)
    theta = parameters(machine)
    torch.testing.assert_close(
        machine.log_joint(x_BD, h), log_joint(theta, x_BD.unsqueeze(1), h).detach(), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        total_log_prob(machine.observe_q(x_BD, h)), log_q(theta, x_BD.unsqueeze(1), h), rtol=0, atol=1e-12
    )


@DEPTHS
def test_the_joint_sums_to_one_over_all_x_and_h_and_q_to_one_over_all_h(layers):
    machine = random_machine(4, layers)
    x_BD = binary_states(4)
    h = [units.expand(len(x_BD), -1, -1) for units in joint_states(layers)]
    assert machine.log_joint(x_BD, h).exp().sum().item() == pytest.approx(1, abs=1e-12)
    q_B = total_log_prob(machine.observe_q(x_BD, h)).exp().sum(1)
    torch.testing.assert_close(q_B, torch.ones_like(q_B), rtol=0, atol=1e-12)


def test_log_weights_are_log_joint_minus_log_q_of_the_samples_of_the_same_seed():
    machine = random_machine(5, [3, 2])
    x_BD = binary_states(5)[:7]
    h = machine.sample_posterior(x_BD, 9, seed=4)
    expected = machine.log_joint(x_BD, h) - total_log_prob(machine.observe_q(x_BD, h))
    torch.testing.assert_close(machine.log_weights(x_BD, 9, seed=4), expected, rtol=0, atol=1e-12)


@DEPTHS
def test_dreams_follow_p_of_x_and_of_x_and_h(layers):
    machine = random_machine(4, layers, seed=1)
    exact = enumerate_machine(machine, binary_states(4))
    x_ND = machine.sample_prior(60_000, seed=5)
    assert frequencies_p_value(state_index(x_ND), exact.log_prob.exp()) > 1e-3

    x_ND, h = machine.dream(60_000, Stream(generator(6, "test")))
    states = state_index(torch.cat([x_ND, *[units[:, 0] for units in h]], 1))
    joint_BS = (exact.log_posterior + exact.log_prob[:, None]).exp()
    assert frequencies_p_value(states, joint_BS.flatten()) > 1e-3


@DEPTHS
def test_posterior_samples_follow_q(layers):
    machine = random_machine(4, layers, seed=2)
    x_BD = binary_states(4)[[3, 12]]
    exact = enumerate_machine(machine, x_BD)
    states_BK = state_index(torch.cat(machine.sample_posterior(x_BD, 40_000, seed=3), 2))
    for row in range(2):
        assert frequencies_p_value(states_BK[row], exact.log_q[row].exp()) > 1e-3


@pytest.mark.parametrize("layers", [[3], [3, 3], [3, 3, 3]], ids=len)
def test_where_q_is_the_exact_posterior_all_weights_are_equal_and_the_ess_is_k(layers):
    machine = exact_posterior_machine(layers)
    x_BD = binary_states(3)
    exact = enumerate_machine(machine, x_BD)
    assert exact.log_posterior.std(0).max() > 0.1  # the posterior does depend on x
    logw_BK = machine.log_weights(x_BD, 50)
    torch.testing.assert_close(logw_BK, exact.log_prob[:, None].expand(-1, 50), rtol=0, atol=1e-12)
    ess_B = effective_sample_size(normalized_weights(logw_BK))
    torch.testing.assert_close(ess_B, torch.full_like(ess_B, 50), rtol=1e-12, atol=0)


def test_where_x_ignores_h_and_q_is_the_prior_all_weights_are_equal():
    machine = random_machine(4, [3])
    with torch.no_grad():
        machine.p[0].weight.zero_()
        machine.q[0].weight.zero_()
        machine.q[0].bias.copy_(machine.prior.bias)
    logw_BK = machine.log_weights(binary_states(4), 20)
    torch.testing.assert_close(logw_BK, logw_BK[:, :1].expand(-1, 20), rtol=0, atol=1e-12)


def test_normalized_weights_give_the_exact_posterior_expectation_as_k_grows():
    machine, copies = random_machine(4, [3, 2], seed=2), 60
    x_BD = binary_states(4)[[1, 6, 11]]
    states_SH = torch.cat(joint_states(machine.layers), 1)
    exact_BHH = torch.einsum(
        "bs,si,sj->bij", enumerate_machine(machine, x_BD).log_posterior.exp(), states_SH, states_SH
    )
    spread = []
    for num_samples in (100, 1000, 10_000):
        x_CD = x_BD.repeat(copies, 1)
        h_CKH = torch.cat(machine.sample_posterior(x_CD, num_samples, seed=8), 2)
        weight_CK = normalized_weights(machine.log_weights(x_CD, num_samples, seed=8))
        estimate = (h_CKH * weight_CK.unsqueeze(2)).transpose(1, 2) @ h_CKH
        error = estimate.view(copies, *exact_BHH.shape) - exact_BHH
        spread.append(error.square().mean().sqrt().item())
    assert within_standard_errors(error, torch.zeros(()))
    assert spread[0] / spread[1] == pytest.approx(10**0.5, rel=0.2)
    assert spread[1] / spread[2] == pytest.approx(10**0.5, rel=0.2)


def test_weights_of_one_example_do_not_depend_on_its_neighbours():
    machine = random_machine(6, [4, 3])
    x_BD = binary_states(6)[[5, 9, 33, 60, 61]]
    together = machine.draw_log_weights(x_BD, 7, row_streams(range(5)))
    alone = machine.draw_log_weights(x_BD[2:3], 7, row_streams([2]))
    among_others = machine.draw_log_weights(x_BD[[4, 2, 0]], 7, row_streams([4, 2, 0]))
    for rows, index in [(alone, 0), (among_others, 1)]:
        torch.testing.assert_close(rows[index], together[2], rtol=0, atol=1e-12)
        torch.testing.assert_close(normalized_weights(rows)[index], normalized_weights(together)[2], rtol=0, atol=1e-12)


def test_reconstructions_are_the_mean_of_p_of_x_given_h1_under_q():
    machine = random_machine(4, [3, 2])
    x_BD, h1 = binary_states(4)[[2, 13]], binary_states(3)
    mean_q = torch.sigmoid(x_BD @ machine.q[0].weight + machine.q[0].bias)
    q_BS = (h1 * mean_q[:, None] + (1 - h1) * (1 - mean_q[:, None])).prod(-1)
    exact = q_BS @ torch.sigmoid(h1 @ machine.p[0].weight + machine.p[0].bias)
    estimate = machine.reconstruct(x_BD, 100_000)
    torch.testing.assert_close(estimate, exact.detach(), rtol=0, atol=4 * 0.5 / math.sqrt(100_000))


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
def test_float32_log_probabilities_are_finite_and_within_1e_5_of_float64(scale):
    exact = random_machine(30, [20, 10], scale=scale)
    coarse = HelmholtzMachine(30, [20, 10])
    coarse.load_state_dict(exact.state_dict())
    exact.load_state_dict(coarse.state_dict())  # the same numbers, rounded to float32
    x_BD = torch.cat(
        [torch.zeros(1, 30), (torch.rand(6, 30, generator=torch.Generator().manual_seed(0)) < 0.3).float()]
    )
    h = coarse.sample_posterior(x_BD, 8)
    doubles = [units.double() for units in h]
    for part in ("observe_p", "observe_q"):
        log_prob = total_log_prob(getattr(coarse, part)(x_BD, h))
        assert log_prob.isfinite().all()
        expected = total_log_prob(getattr(exact, part)(x_BD.double(), doubles))
        torch.testing.assert_close(log_prob, expected, rtol=1e-5, atol=1e-5)
    weight_BK = normalized_weights(coarse.log_weights(x_BD, 8))
    assert weight_BK.isfinite().all()


@pytest.mark.parametrize("form", [torch.tensor, np.array, list, lambda rows: np.array(rows, dtype=bool)])
def test_rows_may_be_a_tensor_an_array_or_nested_lists(form):
    machine = random_machine(3, [2])
    rows = [[0, 1, 1], [1, 0, 0]]
    expected = machine.log_likelihood(torch.tensor(rows, dtype=torch.float64), 5)
    assert torch.equal(machine.log_likelihood(form(rows), 5), expected)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([[0, 1]], "rows of 3 units are needed"),
        ([0, 1, 1], "rows of 3 units are needed"),
        ([[0, 1, 2]], "each value must be 0 or 1"),
        ([[0.0, 0.5, 1.0]], "each value must be 0 or 1"),
        ([[0.0, float("nan"), 1.0]], "each value must be 0 or 1"),
    ],
)
def test_rows_of_another_width_or_other_values_are_refused_in_a_sentence(rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_machine(3, [2]).log_likelihood(rows, 5)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others():
    machine = random_machine(6, [4])
    assert torch.equal(machine.sample_prior(50, seed=1), machine.sample_prior(50, seed=1))
    assert not torch.equal(machine.sample_prior(50, seed=1), machine.sample_prior(50, seed=2))


def test_initial_biases_are_minus_one_and_the_logits_of_the_visible_means():
    mean = torch.tensor([0.1, 0.5, 0.999])
    machine = HelmholtzMachine(3, [4, 2]).initialize(0, visible_mean=mean)
    torch.testing.assert_close(torch.sigmoid(machine.p[0].bias), mean)
    for bias in (machine.p[1].bias, machine.prior.bias, machine.q[0].bias, machine.q[1].bias):
        assert (bias == -1).all()


def test_the_same_seed_gives_the_same_initial_machine_and_another_seed_another():
    first, same, other = (HelmholtzMachine(5, [4]).initialize(seed).p[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the shared data folder with binarized_mnist")
def test_an_untrained_machine_starts_at_the_nll_of_independent_pixels_on_binarized_mnist():
    train, test = mnist_rows("train"), mnist_rows("test")
    mean = (train.sum(0, dtype=torch.int64) + 1) / (len(train) + 2)
    machine = HelmholtzMachine(784, [400, 300, 200, 100, 10]).initialize(0, "reference", visible_mean=mean)
    independent = -(test.float() @ mean.log() + (1 - test.float()) @ (1 - mean).log())
    assert independent.mean().item() == pytest.approx(205.8, abs=0.05)

    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:500]
    nll = -torch.cat([machine.log_likelihood(test[part], 10) for part in rows.split(100)])
    assert (nll - independent[rows]).mean().abs() < 0.5


def mnist_rows(split):
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(MNIST / f"{split}.parquet", columns=["x"])["x"].combine_chunks()
    packed = np.frombuffer(column.buffers()[1], np.uint8).reshape(len(column), -1)
    return torch.from_numpy(np.unpackbits(packed, axis=1)[:, :784])


def test_read_only_arrays_are_taken_and_no_rows_have_no_likelihoods():
    machine = random_machine(3, [2])
    rows = np.zeros((2, 3), dtype=np.uint8)
    rows.flags.writeable = False
    assert machine.log_likelihood(rows, 5).shape == (2,)
    assert machine.log_likelihood(np.zeros((0, 3), dtype=np.uint8), 5).shape == (0,)


@pytest.mark.parametrize("rows", [["a"], [[0, 1], [0]], "010"])
def test_rows_that_are_no_numbers_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        random_machine(3, [2]).rows(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_layer": "sbm"}, "layer kind 'sbm'"),
        ({"q_layer": ""}, "layer kind"),
        ({"layers": []}, "at least one hidden"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HelmholtzMachine(**({"dim": 3, "layers": [2]} | arguments))


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(ValueError, match="initialisation 'xavier'"):
        HelmholtzMachine(3, [2]).initialize(0, "xavier")
