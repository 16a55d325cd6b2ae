import math
from itertools import pairwise

import pytest
import torch
from enumeration import (
    binary_states,
    exact_posterior_machine,
    log_likelihood_gradient,
    log_q,
    parameters,
    random_machine,
    sleep_gradient,
    twin_update,
    wake_gradient,
    within_standard_errors,
)

from rws_ray.core.estimators import Estimator, InputMoments, add_rws_gradients
from rws_ray.core.streams import Stream, generator

REPEATS = 64
CONTROL_VARIATE = pytest.mark.parametrize("control_variate", [False, True], ids=["plain", "control_variate"])
MIXES = pytest.mark.parametrize("wake_mix", [0.0, 0.3, 1.0])
NUM_DREAMS = pytest.mark.parametrize("num_dreams", [1, 3], ids=["1_dream", "3_dreams"])
DEPTHS = pytest.mark.parametrize("layers", [[3], [3, 2], [3, 2, 2], [2, 3, 2, 2]], ids=["L1", "L2", "L3", "L4"])
SAMPLES = pytest.mark.parametrize("num_samples", [1, 5], ids=["K1", "K5"])
BATCHES = pytest.mark.parametrize("batch_size", [1, 7], ids=["B1", "B7"])


def stream(purpose, repeat=0):
    return Stream(generator(0, purpose, repeat))


def update(machine, x_BD, estimator, wake=None, sleep=None, moments=None):
    """The gradients of one update by parameter name, and its StepInfo."""
    for value in machine.parameters():
        value.grad = torch.zeros_like(value)
    info = add_rws_gradients(machine, x_BD, estimator, wake or stream("wake"), sleep or stream("sleep"), moments)
    return {name: value.grad for name, value in machine.named_parameters()}, info


def ascents(machine, x_BD, estimator):
    """−gradients of the loss in independent repeats: (REPEATS, …) by parameter name."""
    each = [
        update(machine, x_BD, estimator, stream("wake", repeat), stream("sleep", repeat))[0]
        for repeat in range(REPEATS)
    ]
    return {name: -torch.stack([grads[name] for grads in each]) for name in each[0]}


def of_p(grads):
    return {name: value for name, value in grads.items() if not name.startswith("q.")}


def of_q(grads):
    return {name: value for name, value in grads.items() if name.startswith("q.")}


def assert_same(grads, expected, atol=1e-10):
    assert grads.keys() == expected.keys()
    for name, value in grads.items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_expected(draws, expected):
    assert draws.keys() == expected.keys()
    for name, value in draws.items():
        assert within_standard_errors(value, expected[name]), name


def zero_moments(machine):
    p, q = (
        [[torch.zeros(size, size, dtype=torch.float64)] for size in (layer.weight.shape[0] + 1 for layer in layers)]
        for layers in (machine.p, machine.q)
    )
    return InputMoments([*p, []], q)  # the top has no inputs


@DEPTHS
@SAMPLES
@BATCHES
@MIXES
@NUM_DREAMS
@CONTROL_VARIATE
def test_local_gradients_equal_the_autograd_twin_on_the_same_samples(
    layers, num_samples, batch_size, wake_mix, num_dreams, control_variate
):
    machine = random_machine(5, layers, scale=1.0)
    x_BD = binary_states(5)[4 : 4 * batch_size + 1 : 4]
    grads, info = update(machine, x_BD, Estimator(num_samples, wake_mix, num_dreams, control_variate))
    h = [seen.units for seen in machine.infer(x_BD, num_samples, stream("wake"))]
    dreams = machine.dream(batch_size * num_dreams, stream("sleep"))
    twin = twin_update(machine, x_BD, h, dreams, wake_mix, control_variate)
    assert_same(grads, twin.gradient)
    log_prob = (torch.logsumexp(twin.log_weight, 1) - math.log(num_samples)).sum()
    expected = torch.stack([log_prob, (1 / twin.weight.square().sum(1)).sum(), twin.weight.amax(1).sum()])
    torch.testing.assert_close(torch.stack(info), expected, rtol=0, atol=1e-10)


@DEPTHS
@SAMPLES
@MIXES
@NUM_DREAMS
@CONTROL_VARIATE
def test_input_moments_are_the_sums_of_outer_products_under_the_weights_of_the_update(
    layers, num_samples, wake_mix, num_dreams, control_variate
):
    machine, x_BD = random_machine(5, layers, scale=1.0), binary_states(5)[::5]
    moments = zero_moments(machine)
    estimator = Estimator(num_samples, wake_mix, num_dreams, control_variate)
    with_moments = update(machine, x_BD, estimator, moments=moments)[0]
    assert_same(with_moments, update(machine, x_BD, estimator)[0], atol=0)

    h = [seen.units for seen in machine.infer(x_BD, num_samples, stream("wake"))]
    x_dream, h_dream = machine.dream(len(x_BD) * num_dreams, stream("sleep"))
    w_BK = twin_update(machine, x_BD, h, (x_dream, h_dream), wake_mix, control_variate).weight
    each = torch.full((len(x_dream), 1), 1 / num_dreams, dtype=torch.float64)
    wake_inputs = [x_BD.unsqueeze(1).expand(-1, num_samples, -1), *h[:-1]]
    dream_inputs = [x_dream.unsqueeze(1), *h_dream[:-1]]
    for index in range(len(layers)):
        torch.testing.assert_close(moments.p[index][0], outer_products(w_BK, h[index]), rtol=0, atol=1e-10)
        wake, sleep = outer_products(w_BK, wake_inputs[index]), outer_products(each, dream_inputs[index])
        torch.testing.assert_close(moments.q[index][0], wake_mix * wake + (1 - wake_mix) * sleep, rtol=0, atol=1e-10)


def outer_products(weight_BK, y_BKI):
    extended = torch.cat([y_BKI, torch.ones(*y_BKI.shape[:2], 1, dtype=torch.float64)], 2)
    return torch.einsum("bk,bki,bkj->ij", weight_BK, extended, extended)


def test_the_p_update_converges_to_the_exact_gradient_of_log_p_of_x():
    machine, x_BD = random_machine(4, [3, 2]), binary_states(4)[[3, 9]]
    draws = ascents(machine, x_BD, Estimator(4000, wake_mix=1))
    assert_expected(of_p(draws), of_p(log_likelihood_gradient(machine, x_BD)))


@CONTROL_VARIATE
def test_the_wake_q_update_converges_to_the_exact_gradient_of_minus_the_divergence_of_p_from_q(control_variate):
    machine, x_BD = random_machine(4, [3, 2]), binary_states(4)[[3, 9]]
    draws = ascents(machine, x_BD, Estimator(4000, wake_mix=1, control_variate=control_variate))
    assert_expected(of_q(draws), of_q(wake_gradient(machine, x_BD)))


def test_the_sleep_q_update_has_the_exact_expectation_under_p_for_each_example():
    machine, x_BD = random_machine(4, [3, 2]), binary_states(4)[[3, 9]]
    draws = ascents(machine, x_BD, Estimator(1, wake_mix=0, num_dreams=2000))
    assert_expected(of_q(draws), {name: 2 * value for name, value in of_q(sleep_gradient(machine)).items()})


@pytest.mark.parametrize("wake_mix", [0.3, 0.5])
def test_the_q_update_is_the_mix_of_the_exact_wake_and_sleep_gradients(wake_mix):
    machine, x_BD = random_machine(4, [3, 2]), binary_states(4)[[3, 9]]
    draws = ascents(machine, x_BD, Estimator(4000, wake_mix, num_dreams=1000))
    wake, sleep = wake_gradient(machine, x_BD), sleep_gradient(machine)
    assert_expected(
        of_q(draws), of_q({name: wake_mix * wake[name] + (1 - wake_mix) * 2 * sleep[name] for name in wake})
    )


def test_the_bias_of_the_p_and_the_wake_q_gradient_falls_as_one_over_k():
    machine, x_BD, copies = random_machine(4, [3, 2], seed=2), binary_states(4)[3:4], 20_000
    exact = {**log_likelihood_gradient(machine, x_BD), **of_q(wake_gradient(machine, x_BD))}
    bias = []
    for num_samples in (8, 32, 128):
        estimator = Estimator(num_samples, wake_mix=1, control_variate=True)
        grads, _ = update(machine, x_BD.expand(copies, -1), estimator)
        off = {name: (-value / copies - exact[name]).flatten() for name, value in grads.items()}
        bias.append([torch.cat(list(part.values())).norm().item() for part in (of_p(off), of_q(off))])
    for more, fewer in pairwise(bias):
        assert more == pytest.approx([4 * each for each in fewer], rel=0.2)


@NUM_DREAMS
@MIXES
def test_gradient_sums_of_unequal_shards_add_up_to_the_batchs(wake_mix, num_dreams):
    machine, x_BD = random_machine(5, [3, 2], scale=1.0), binary_states(5)[::4]
    estimator = Estimator(5, wake_mix, num_dreams, control_variate=True)

    def shard(rows):
        wake = Stream([generator(0, "wake", row) for row in rows])
        sleep = Stream([generator(0, "sleep", row, dream) for row in rows for dream in range(num_dreams)])
        moments = zero_moments(machine)
        grads, info = update(machine, x_BD[list(rows)], estimator, wake, sleep, moments)
        sums = {**grads, **info._asdict()}
        of_maps = {net: [each for layer in getattr(moments, net) for each in layer] for net in ("p", "q")}
        sums |= {f"{net}.{index}": each for net, maps in of_maps.items() for index, each in enumerate(maps)}
        return sums

    whole, small, large = shard(range(8)), shard(range(3)), shard(range(3, 8))
    assert_same({name: small[name] + large[name] for name in whole}, whole)


def test_classic_wake_sleep_gives_p_the_weight_one_and_q_the_dreams_alone():
    machine, estimator = random_machine(5, [3, 2], scale=1.0), Estimator(num_samples=1, wake_mix=0)
    x_BD, other_BD = binary_states(5)[::4], binary_states(5)[1::4]
    grads, info = update(machine, x_BD, estimator)
    assert info.max_weight == info.ess == len(x_BD)

    theta = parameters(machine)
    x_dream, h_dream = machine.dream(len(x_BD), stream("sleep"))
    (-log_q(theta, x_dream.unsqueeze(1), h_dream).sum()).backward()
    assert_same(of_q(grads), {name: value.grad for name, value in of_q(theta).items()})
    assert_same(of_q(update(machine, other_BD, estimator)[0]), of_q(grads), atol=0)


def test_with_one_sample_the_wake_q_gradient_is_noise_of_mean_zero_and_the_control_variate_removes_it():
    machine, x_BD = random_machine(5, [3, 2]), binary_states(5)[::4]
    noise = of_q(ascents(machine, x_BD.repeat(50, 1), Estimator(1, wake_mix=1)))
    assert min(value.std(0).max() for value in noise.values()) > 0.1
    assert_expected(noise, {name: torch.zeros(()) for name in noise})
    for value in of_q(update(machine, x_BD, Estimator(1, wake_mix=1, control_variate=True))[0]).values():
        assert (value == 0).all()


def test_where_q_is_the_exact_posterior_the_control_variate_leaves_no_wake_q_gradient_at_all():
    machine, x_BD = exact_posterior_machine([3, 3]), binary_states(3)
    plain, steadied = (of_q(update(machine, x_BD, Estimator(5, 1, 1, flag))[0]) for flag in (False, True))
    assert max(value.abs().max() for value in plain.values()) > 0.1
    assert max(value.abs().max() for value in steadied.values()) < 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_float32_gradients_are_finite_for_huge_logits_and_all_zero_images(scale):
    machine = random_machine(12, [6, 5], scale=scale).float()
    x_BD = torch.cat([torch.zeros(2, 12), torch.ones(1, 12)])
    grads, info = update(machine, x_BD, Estimator(5))
    assert all(value.isfinite().all() for value in grads.values())
    assert torch.stack(info).isfinite().all()


def test_gradients_are_added_to_those_already_there():
    machine, x_BD = random_machine(5, [3, 2]), binary_states(5)[::4]
    once = {name: value.clone() for name, value in update(machine, x_BD, Estimator(5))[0].items()}
    add_rws_gradients(machine, x_BD, Estimator(5), stream("wake"), stream("sleep"))
    assert_same({name: value.grad for name, value in machine.named_parameters()}, {n: 2 * v for n, v in once.items()})
