"""One update: the gradient is the batch's mean, whatever the micro-shards; the optimisers are those of their papers."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_dataset, tiny_job

from rws_ray.core import kernels
from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator
from rws_ray.errors import RunError
from rws_ray.training import optimizers
from rws_ray.training.batches import Epochs, Examples, independent_nll, smoothed_means
from rws_ray.training.flat import FlatLayout
from rws_ray.training.optimizers import Adam, Momentum, Natural, Rates, corrections, leading_eigenvectors, scheduled
from rws_ray.training.reduction import Group
from rws_ray.training.update import Updater, training_num_samples

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["fused", "plain"])


def updater(**changes: object) -> Updater:
    job, dataset = tiny_job(**changes), tiny_dataset()
    machine = HelmholtzMachine(dataset.dim, job.model.layers).initialize(job.seed, "glorot")
    return Updater(job, machine, Examples(dataset.train, CPU), Group())


def test_unequal_micro_shards_weigh_by_their_rows():
    """The gradient is the sum over micro-shards by the batch size, not the mean of the micro-shards' means."""
    made = updater(scale__micro_shards=4, optim__batch_size=10)
    rows = made.epochs.batch(0)
    expected = torch.zeros(made.layout.num_parameters)
    made.layout.bind_gradients(expected)
    for shard, part in enumerate(rows.tensor_split(4)):  # of 3, 3, 2 and 2 rows
        streams = [Stream(generator(0, purpose, 0, shard)) for purpose in ("wake", "sleep")]
        add_rws_gradients(made.machine, made.examples.take(part), Estimator(3), *streams)
    found = made.reduce(
        lambda shard, vector: made.add_shard(0, shard, rows.tensor_split(4)[shard], vector, 3), len(expected)
    )
    torch.testing.assert_close(found / len(rows), expected / 10)


def test_each_row_is_seen_once_an_epoch_in_an_order_of_its_own():
    epochs = Epochs(37, 10, seed=3)
    orders = [torch.cat([epochs.batch(4 * epoch + place) for place in range(4)]) for epoch in (0, 1)]
    assert [sorted(order.tolist()) for order in orders] == [list(range(37))] * 2
    assert orders[0].tolist() != orders[1].tolist()


def test_rows_are_unpacked_as_they_were_packed():
    split = tiny_dataset(dim=13).train
    index = torch.tensor([5, 0, 36])
    assert Examples(split, CPU).take(index).tolist() == split.unpacked(index.numpy()).tolist()


def test_grey_rows_are_drawn_with_their_value_as_probability():
    split = tiny_dataset(num_train=40, kind="gray8").train
    examples = Examples(split, CPU)
    draws = Stream(torch.Generator().manual_seed(0))
    mean = torch.stack([examples.take(torch.arange(40), draws) for _ in range(2000)]).mean(0)
    expected = torch.from_numpy(split.rows / 255.0).float()
    assert float((mean - expected).abs().max()) < 5 * (0.25 / 2000) ** 0.5


def test_independent_units_are_scored_by_the_training_means_with_one_more_row_of_each_kind():
    dataset = tiny_dataset()
    mean = (torch.from_numpy(dataset.train.unpacked()).double().sum(0) + 1) / (37 + 2)
    x = torch.from_numpy(dataset.test.unpacked()).double()
    by_row = -(x * mean.log() + (1 - x) * (1 - mean).log()).sum(1)
    assert smoothed_means(dataset.train).tolist() == pytest.approx(mean.tolist())
    assert independent_nll(dataset.train, dataset.test) == pytest.approx(float(by_row.mean()))


def layout() -> FlatLayout:
    return FlatLayout(HelmholtzMachine(5, [4, 3]).initialize(0, "glorot"))


@KINDS
def test_adam_moves_as_torchs_adam(kind):
    flat = layout()
    theta = torch.randn(flat.num_parameters, generator=torch.Generator().manual_seed(0))
    twin = torch.nn.Parameter(theta.clone())
    theirs, ours = torch.optim.Adam([twin], lr=0.01), Adam(flat, theta)
    for step in range(20):
        gradient = torch.randn(len(theta), generator=torch.Generator().manual_seed(step + 1))
        twin.grad = gradient.clone()
        theirs.step()
        with kernels.using(kind):
            ours.update(theta, gradient, Rates(0.01, 0.01, *corrections(step)))
    torch.testing.assert_close(theta, twin.detach(), rtol=1e-5, atol=1e-6)


@KINDS
def test_momentum_is_the_references_on_sums(kind):
    """science: d ← 0.95 d + 0.05 · lr_sum · Σ g equals ours with lr = B · lr_sum on the mean gradient."""
    flat = layout()
    theta = torch.zeros(flat.num_parameters)
    reference, velocity = theta.clone(), torch.zeros_like(theta)
    ours = Momentum(flat, theta)
    for step in range(10):
        mean = torch.randn(len(theta), generator=torch.Generator().manual_seed(step))
        velocity = 0.95 * velocity + 0.05 * (1e-3 * (100 * mean))
        reference -= velocity
        with kernels.using(kind):
            ours.update(theta, mean.clone(), Rates(0.1, 0.1))
    torch.testing.assert_close(theta, reference)


@KINDS
def test_natural_preconditions_each_layer_by_its_input_moment(kind):
    flat, damping = layout(), 0.3
    theta = torch.zeros(flat.num_parameters)
    draws = torch.Generator().manual_seed(0)
    moments = torch.zeros(flat.length - flat.num_parameters)
    for square in flat.squares(moments):
        inputs = torch.randn(50, len(square), generator=draws)
        square.copy_(inputs.T @ inputs / 50)
    gradient = torch.randn(flat.num_parameters, generator=draws)
    expected = gradient.clone()
    for matrix, moment in zip(flat.matrices(expected), flat.squares(moments), strict=True):
        matrix.copy_(damping * torch.linalg.solve(moment + damping * torch.eye(len(moment)), matrix.clone()))
    (prior,) = flat.others
    expected[prior] *= damping / (1 + damping)
    ours = Natural(flat, theta, damping)
    ours.add_moments(moments, 1.0)
    ours.refresh(is_first=True)
    with kernels.using(kind):
        ours.update(theta, gradient.clone(), Rates(1.0, 1.0))
    torch.testing.assert_close(theta, -0.05 * expected, rtol=1e-4, atol=1e-6)


def test_leading_eigenvectors_follow_a_moment_matrix_that_changes_little():
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 60, generator=draws) * torch.linspace(3, 0.1, 60)
    first = inputs.T @ inputs / 500
    changed = first + 0.01 * torch.diag(torch.rand(60, generator=draws))
    _, basis = leading_eigenvectors(first, torch.zeros(60, 8), is_first=True)
    values, vectors = leading_eigenvectors(changed, basis, is_first=False)
    exact = torch.linalg.eigvalsh(changed.double())[-8:]
    torch.testing.assert_close(values.double(), exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_eigenvectors_of_few_rows_with_pixels_that_are_never_on_are_finite(seed):
    place_I = torch.arange(28.0)
    rate_II = torch.exp(-((place_I[:, None] - 14) ** 2 + (place_I - 14) ** 2) / 20)
    rate_I = torch.where(rate_II < 0.02, 0, rate_II).flatten()  # a margin that is never on, as in MNIST
    y_RI = (torch.rand(100, 784, generator=torch.Generator().manual_seed(seed)) < rate_I).float()
    moment_II = y_RI.T @ y_RI / 100
    values_R, vectors_IR = leading_eigenvectors(moment_II, torch.zeros(784, 64), is_first=True)
    torch.testing.assert_close(moment_II @ vectors_IR, vectors_IR * values_R, atol=1e-4, rtol=0)


def test_natural_shrinks_by_the_mean_what_its_leading_eigenvectors_leave(monkeypatch):
    monkeypatch.setattr(optimizers, "RANK", 3)
    flat, damping = layout(), 0.3
    moments = torch.zeros(flat.length - flat.num_parameters)
    for square in flat.squares(moments):
        # Few directions stand out, the others are alike: then the preconditioner is exact.
        spectrum = torch.full((len(square),), 0.2)
        spectrum[:3] = torch.tensor([5.0, 3.0, 1.0])[: len(square)]
        turn = torch.linalg.qr(torch.randn(len(square), len(square), generator=torch.Generator().manual_seed(1))).Q
        square.copy_(turn @ torch.diag(spectrum) @ turn.T)
    gradient = torch.randn(flat.num_parameters, generator=torch.Generator().manual_seed(2))
    expected = gradient.clone()
    for matrix, moment in zip(flat.matrices(expected), flat.squares(moments), strict=True):
        matrix.copy_(damping * torch.linalg.solve(moment + damping * torch.eye(len(moment)), matrix.clone()))
    ours = Natural(flat, torch.zeros(flat.num_parameters), damping)
    ours.add_moments(moments, 1.0)
    ours.refresh(is_first=True)
    theta = torch.zeros(flat.num_parameters)
    ours.update(theta, gradient.clone(), Rates(1.0, 1.0))
    for found, exact in zip(flat.matrices(theta), flat.matrices(expected), strict=True):
        torch.testing.assert_close(found, -0.05 * exact, rtol=1e-4, atol=1e-6)


def test_the_layers_matrices_are_their_weights_with_the_bias_as_last_row():
    machine = HelmholtzMachine(5, [4, 3]).initialize(0, "glorot")
    flat = FlatLayout(machine)
    vector = flat.flatten_parameters()
    for matrix, layer in zip(flat.matrices(vector), [*machine.p, *machine.q], strict=True):
        assert torch.equal(matrix[:-1], layer.weight)
        assert torch.equal(matrix[-1], layer.bias)
    (prior,) = flat.others
    assert torch.equal(vector[prior], machine.prior.bias)


def test_separate_rates_move_p_and_q_separately():
    made = updater(optim__name="sgd", optim__lr=0.5, optim__lr_q=1e-30)
    before = made.theta.clone()
    made.step(0)
    moved = made.theta != before
    assert bool(moved[: made.layout.num_p].any())
    assert not bool(moved[made.layout.num_p :].any())


def test_clipping_bounds_the_gradient_of_each_network():
    made = updater(optim__name="sgd", optim__clip_norm=1e-3, optim__lr=1.0, optim__lr_q=1.0)
    before = made.theta.clone()
    made.step(0)
    for part in (slice(0, made.layout.num_p), slice(made.layout.num_p, None)):
        assert float((made.theta - before)[part].norm()) == pytest.approx(0.05 * 1e-3, rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update():
    made = updater()
    made.theta[0] = float("nan")
    before = made.theta.clone()
    with pytest.raises(RunError, match="step 0 is not finite"):
        made.step(0)
    torch.testing.assert_close(made.theta, before, rtol=0, atol=0, equal_nan=True)


@KINDS
@pytest.mark.parametrize("kind_of_optimizer", [Adam, Momentum])
def test_the_average_goes_its_share_of_the_way_to_the_moved_weights(kind, kind_of_optimizer):
    flat = layout()
    theta, average, gradient = torch.randn(3, flat.num_parameters, generator=torch.Generator().manual_seed(0))
    before = average.clone()
    with kernels.using(kind):
        kind_of_optimizer(flat, theta).update(theta, gradient, Rates(0.1, 0.1, average=0.25), average)
    torch.testing.assert_close(average, before + 0.25 * (theta - before))


def test_the_average_follows_the_weights():
    made = updater(optim__average=0.5)
    average = made.theta.clone()
    for step in range(5):
        made.step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * made.theta
    torch.testing.assert_close(made.average, average)


def test_schedules():
    assert scheduled(2.0, "constant", 7, 10, 3) == 2.0
    assert scheduled(2.0, "cosine", 0, 10, 3) == 2.0
    assert scheduled(2.0, "cosine", 5, 10, 3) == pytest.approx(1.0)
    assert scheduled(2.0, "cosine", 10, 10, 3) == pytest.approx(0.0)
    assert [scheduled(1.0, "step", epoch, 10, 3) for epoch in (0, 2.9, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])


def test_k_is_raised_at_its_epochs():
    job = tiny_job(estimator__raise_num_samples=[[4, 50], [2, 10]])
    assert [training_num_samples(job, epoch) for epoch in range(6)] == [3, 3, 10, 10, 50, 50]
