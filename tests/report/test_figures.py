import csv
import io
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rws_ray.report import figures, style

NAN = float("nan")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "figure.png"


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))


def column(path, name):
    return np.array([float(row[name]) for row in read_csv(path)])


def pixels(path):
    """Grey values 0..255 of a picture that is as wide as it should be and has nothing at its edges."""
    with Image.open(path) as image:
        assert "Software" not in image.info
        grey = np.asarray(image.convert("L"))
    assert grey.shape[1] == 1000
    assert grey.min() < 100, "an empty picture"
    for edge in (grey[:6], grey[-6:], grey[:, :6], grey[:, -6:]):
        assert (edge == 255).all(), "something is clipped at an edge"
    return grey


def bits(num, dim, seed=0):
    return (np.random.default_rng(seed).random((num, dim)) < 0.3).astype(np.uint8)


def training_curves(num_epochs, every):
    """Curves of a run that validates each `every` epochs, and at its first and last."""
    epoch = np.arange(1, num_epochs + 1)
    bound = 98 + 107 / epoch
    is_validated = (epoch % every == 0) | (epoch == 1) | (epoch == num_epochs)
    nll = np.where(is_validated, 97 + 105 / epoch, NAN)
    return epoch, bound, nll, np.where(is_validated, 0.25, NAN)


@pytest.mark.parametrize("num", [1, 7, 100])
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (16, 8), ()])
def test_samples_of_any_number_and_shape_make_a_whole_picture(num, shape, path):
    x = bits(num, int(np.prod(shape)) if shape else 123)
    assert figures.sample_grid(x, shape, path, "Samples from p") == path
    pixels(path)
    stored = np.loadtxt(path.with_suffix(".csv"), delimiter=",", skiprows=1, ndmin=2)
    assert (stored == x).all()
    assert path.with_suffix(".csv").read_text().startswith("x0,x1,x2,")


@pytest.mark.parametrize("values", [bits(1, 64), np.random.default_rng(0).random((1, 64)).astype(np.float32)])
def test_the_pixels_of_an_image_are_its_units_black_for_one(values, path):
    figures.sample_grid(values, (8, 8), path, "Samples from p")
    grey = pixels(path)
    left, scale = 33, 30  # within the margin and the frame; 240 pixels for 8 units
    top = int(np.flatnonzero(grey[:, left - 1] == 153)[0]) + 1  # the frame's grey
    drawn = grey[top : top + 8 * scale, left : left + 8 * scale].reshape(8, scale, 8, scale)
    assert (drawn.min(axis=(1, 3)) == drawn.max(axis=(1, 3))).all()
    np.testing.assert_allclose(1 - drawn[:, 0, :, 0] / 255, values.reshape(8, 8), atol=2 / 255)


def test_the_cells_of_a_bit_matrix_are_its_bits(path):
    x = bits(5, 123)
    figures.sample_grid(x, (), path, "Samples from p")
    grey = pixels(path)
    cell_width, cell_height = 7, 12
    rows = grey[:, 93 : 93 + 122 * cell_width]
    # The spine above the first row is the first line that is black from end to end.
    top = int(np.flatnonzero((rows < 60).all(axis=1))[0])
    middles = grey[top + 6 + cell_height * np.arange(5)][:, 95 + cell_width * np.arange(123)]
    assert ((middles < 128) == x.astype(bool)).all()


def test_grey_values_come_back_from_the_csv_exactly(path):
    means = np.random.default_rng(0).random((3, 16)).astype(np.float32)
    figures.sample_grid(means, (4, 4), path, "Means of p")
    stored = np.loadtxt(path.with_suffix(".csv"), delimiter=",", skiprows=1, dtype=np.float32)
    assert (stored == means).all()


def test_truth_values_are_stored_as_bits(path):
    figures.sample_grid(bits(2, 4).astype(bool), (2, 2), path, "Samples from p")
    assert set(path.with_suffix(".csv").read_text().split("\n", 1)[1]) <= set("01,\n")


@pytest.mark.parametrize(
    "title", ["MODELS:/RWS-BINARIZED-MNIST@CHAMPION " * 6, "a name with $\\broken{$ in it", "words " * 60]
)
def test_any_title_fits(title, path):
    figures.sample_grid(bits(2, 64), (8, 8), path, title)
    pixels(path)


def test_more_samples_than_a_picture_holds_are_all_in_the_csv(path):
    figures.sample_grid(bits(11_000, 4), (), path, "Samples from p")
    assert pixels(path).shape[0] < 10_500
    assert len(read_csv(path)) == 11_000


@pytest.mark.parametrize(
    ("x", "shape", "sentence"),
    [
        (np.zeros((2, 64)), (8, 9), r"Shape \(8, 9\) does not hold the 64 units"),
        (np.zeros((2, 64)), (4, 4, 4), "give \\(H, W\\), or \\(\\)"),
        (np.full((2, 64), 255), (8, 8), "values in 0..1; got 255 to 255"),
        (np.full((2, 64), NAN), (8, 8), "values in 0..1"),
        (np.zeros((0, 64)), (8, 8), "matrix of samples × units"),
        (np.zeros(64), (8, 8), "matrix of samples × units"),
    ],
)
def test_what_are_not_samples_of_that_shape_is_refused(x, shape, sentence, path):
    with pytest.raises(ValueError, match=sentence):
        figures.sample_grid(x, shape, path, "Samples from p")
    assert not path.exists()


@pytest.mark.parametrize("num", [1, 7, 100])
@pytest.mark.parametrize("shape", [(28, 28), ()])
def test_reconstructions_of_any_number_and_shape_make_a_whole_picture(num, shape, path):
    dim = 784 if shape else 123
    x, means = bits(num, dim), np.random.default_rng(1).random((num, dim))
    assert figures.reconstruction_grid(x, means, shape, path) == path
    pixels(path)
    rows = read_csv(path)
    assert [(row["pair"], row["part"]) for row in rows[:2]] == [("0", "data"), ("0", "reconstruction")]
    stored = np.array([[float(row[f"x{unit}"]) for unit in range(dim)] for row in rows])
    assert (stored[0::2] == x).all()
    assert (stored[1::2] == means).all()


def test_the_data_stand_above_their_reconstruction(path):
    figures.reconstruction_grid(np.ones((1, 64)), np.zeros((1, 64)), (8, 8), path)
    grey = pixels(path)[:, 40:140]
    black = np.flatnonzero((grey == 0).all(axis=1))
    assert len(black) == 120
    assert (grey[black[-1] + 2 : black[-1] + 122] == 255).all()


def test_data_without_their_reconstructions_are_refused(path):
    with pytest.raises(ValueError, match="make no pairs"):
        figures.reconstruction_grid(bits(3, 64), bits(2, 64), (8, 8), path)


@pytest.mark.parametrize(("num_epochs", "every"), [(1, 1), (2, 1), (60, 5), (500, 10), (500, 1)])
def test_curves_over_any_number_of_epochs_make_a_whole_picture(num_epochs, every, path):
    epoch, bound, nll, stderr = training_curves(num_epochs, every)
    assert figures.nll_over_epochs(epoch, bound, nll, stderr, 5, 100, path, independent_nll=206.8) == path
    pixels(path)
    np.testing.assert_array_equal(column(path, "epoch"), epoch)
    np.testing.assert_array_equal(column(path, "train_bound"), bound)
    np.testing.assert_array_equal(column(path, "valid_nll"), nll)
    np.testing.assert_array_equal(column(path, "valid_stderr"), stderr)
    assert set(column(path, "train_num_samples")) == {5}
    assert set(column(path, "valid_num_samples")) == {100}
    assert set(column(path, "independent_nll")) == {206.8}


def test_a_schedule_of_k_is_stored_for_each_epoch(path):
    epoch, bound, nll, stderr = training_curves(4, 2)
    figures.nll_over_epochs(epoch, bound, nll, stderr, [5, 5, 10, 100], 100, path)
    pixels(path)
    assert column(path, "train_num_samples").tolist() == [5, 5, 10, 100]
    assert "independent_nll" not in read_csv(path)[0]


@pytest.mark.parametrize("missing", ["train_bound", "valid_nll"])
def test_a_run_with_one_of_the_curves_only_is_drawn(missing, path):
    epoch, bound, nll, stderr = training_curves(5, 1)
    gone = np.full(5, NAN)
    bound, nll, stderr = (gone, nll, stderr) if missing == "train_bound" else (bound, gone, gone)
    pixels(figures.nll_over_epochs(epoch, bound, nll, stderr, 5, 100, path))


def test_infinite_values_and_unknown_errors_are_drawn_round(path):
    nll, stderr = [np.inf, 20.0, 19.0, 18.0], [NAN, NAN, 0.1, 0.1]
    pixels(figures.nll_over_epochs([1, 2, 3, 4], [np.inf, NAN, 21, 20], nll, stderr, 5, 100, path))
    assert column(path, "valid_nll").tolist() == nll


@pytest.mark.parametrize("epochs", [[], [1, 2]])
def test_a_plot_without_a_value_is_refused(epochs, path):
    nothing = [NAN] * len(epochs)
    with pytest.raises(ValueError, match="Not one finite value"):
        figures.nll_over_epochs(epochs, nothing, nothing, nothing, 5, 100, path)


def test_curves_of_unlike_lengths_are_refused(path):
    with pytest.raises(ValueError, match=r"one value per point; got shapes \[\(2,\), \(2,\), \(1,\), \(2,\)\]"):
        figures.nll_over_epochs([1, 2], [3, 2], [3], [0.1, 0.1], 5, 100, path)


def labels(figure):
    """All that is written in a figure, with its boxes in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    written = list(figure.texts)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            written += [axis.label, *(label for at, label in ticks if low <= at <= high)]
        written += axes.get_legend().get_texts() if axes.get_legend() else []
    return [(text.get_text(), text.get_window_extent(renderer)) for text in written if text.get_text()]


def draw_everything(path):
    """Calls that draw each kind of figure at its smallest, usual and largest."""
    for num in (1, 2, 7, 100):
        yield lambda num=num: figures.sample_grid(bits(num, 123), (), path, "Samples from p")
        yield lambda num=num: figures.sample_grid(bits(num, 64), (8, 8), path, "Samples from p, at length, " * 5)
        yield lambda num=num: figures.reconstruction_grid(bits(num, 123), bits(num, 123), (), path)
    for dim in (1, 4, 40, 1500):
        yield lambda dim=dim: figures.sample_grid(bits(12, dim), (), path, "Samples from p")
    for num, every in ((1, 1), (2, 1), (60, 5), (500, 10)):
        curves = training_curves(num, every)
        yield lambda curves=curves: figures.nll_over_epochs(*curves, [5] * len(curves[0]), 100, path, 206.8)
    for k in ([100], [1, 2], [1, 60_000, 100_000], [1, 5, 10, 25, 50, 100, 250, 500, 1000], np.arange(1, 501)):
        yield lambda k=k: figures.nll_over_num_samples(k, 9000 + 6 / np.array(k), np.full(len(k), 0.3), path)


def test_no_label_is_clipped_or_lies_on_another(path, monkeypatch):
    drawn = []
    store = style.save
    monkeypatch.setattr(style, "save", lambda figure, *rest: (store(figure, *rest), drawn.append(figure)))
    for draw in draw_everything(path):
        draw()
    for figure in drawn:
        written = labels(figure)
        canvas = figure.bbox
        inside = [b.x0 >= 0 and b.y0 >= 0 and b.x1 <= canvas.x1 and b.y1 <= canvas.y1 for _, b in written]
        assert all(inside), [text for (text, _), fits in zip(written, inside, strict=True) if not fits]
        assert not [(s, t) for (s, a), (t, b) in itertools.combinations(written, 2) if a.overlaps(b)]


def test_the_first_sample_is_the_top_row_of_a_bit_matrix():
    figure = figures._bit_matrix(bits(5, 9)[:, None], (), "Samples from p", "caption")
    assert figure.axes[0].get_ylim() == (5, 0)


def limits(bound, independent_nll=None):
    axes = Figure().add_subplot()
    bound = np.asarray(bound, dtype=float)
    nothing = np.full(len(bound), NAN)
    figures._epoch_limits(axes, np.arange(1, len(bound) + 1), bound, nothing, nothing)
    if independent_nll is not None:
        figures._reference_line(axes, independent_nll)
    return axes.get_ylim()


def test_a_steep_first_fall_does_not_flatten_the_rest():
    assert limits([200, 180, *np.linspace(100, 95, 58)])[1] == pytest.approx(100, abs=1)


def test_only_the_first_epochs_may_leave_the_frame():
    spike = np.linspace(100, 95, 60)
    spike[40] = 500
    assert limits(spike)[1] > 500
    assert limits([50, 50, *np.linspace(100, 95, 58)])[0] < 50
    assert limits([200, 100, 95])[1] > 200


def test_the_reference_line_leaves_the_curves_half_of_the_frame():
    assert limits([20, 18], independent_nll=21)[1] > 21
    assert limits([20, 18], independent_nll=206.8)[1] < 21


@pytest.mark.parametrize("num_samples", [[100], [1, 100_000], [1, 5, 10, 25, 50, 100, 250, 500, 1000], range(1, 501)])
def test_the_nll_over_any_values_of_k_makes_a_whole_picture(num_samples, path):
    k = np.array(num_samples)
    nll, stderr = 95 + 6 / k**0.4, np.full(len(k), 0.3)
    assert figures.nll_over_num_samples(k, nll, stderr, path) == path
    pixels(path)
    np.testing.assert_array_equal(column(path, "num_samples"), k)
    np.testing.assert_array_equal(column(path, "nll"), nll)
    np.testing.assert_array_equal(column(path, "stderr"), stderr)


def test_labels_of_k_keep_their_distance():
    assert figures._log_ticks([1, 5, 10, 25, 100], 0.2) == [100, 25, 10, 5, 1]
    assert figures._log_ticks([90, 95, 100], 0.2) == [100]
    assert figures._log_ticks(list(range(1, 501)), 0.2) == [500, 200, 100, 50, 20, 10, 5, 2, 1]


def test_k_below_one_is_refused(path):
    with pytest.raises(ValueError, match="got K = 0"):
        figures.nll_over_num_samples([0, 5], [2, 1], [0.1, 0.1], path)


def test_the_same_input_gives_the_same_bytes_whatever_the_users_settings(tmp_path):
    def draw(folder):
        folder.mkdir()
        figures.sample_grid(bits(7, 64), (8, 8), folder / "images.png", "Samples from p")
        figures.reconstruction_grid(bits(7, 20), bits(7, 20), (), folder / "bits.png")
        figures.nll_over_epochs(*training_curves(60, 5), 5, 100, folder / "epochs.png", independent_nll=206.8)
        figures.nll_over_num_samples([1, 5, 10], [3, 2, 1], [0.1] * 3, folder / "k.png")
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    once = draw(tmp_path / "once")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "figure.dpi": 50, "axes.facecolor": "red"}):
        again = draw(tmp_path / "again")
        assert matplotlib.rcParams["font.size"] == 30
    assert once == again
    assert sorted(once) == sorted(
        f"{name}.{kind}" for name in ("images", "bits", "epochs", "k") for kind in ("png", "csv")
    )


def test_a_figure_that_cannot_be_put_in_place_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "figure.png"
    (path / "in_the_way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        figures.sample_grid(bits(2, 64), (8, 8), path, "Samples from p")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figure.csv", "figure.png"]


def test_who_reads_a_figure_while_it_is_drawn_anew_reads_the_old_one_whole(path):
    figures.sample_grid(bits(2, 64), (8, 8), path, "Samples from p")
    before = path.read_bytes()
    with path.open("rb") as reader:
        figures.sample_grid(bits(2, 64, seed=1), (8, 8), path, "Samples from p")
        assert reader.read() == before
    assert path.read_bytes() != before


def test_data_that_cannot_be_written_leave_the_old_figure_whole(path):
    figures.sample_grid(bits(2, 64), (8, 8), path, "Samples from p")
    before = path.read_bytes(), path.with_suffix(".csv").read_bytes()

    def broken_rows():
        yield [1]
        raise RuntimeError

    with style.look():
        figure = style.blank_figure(1000, 100, "another")[0]
        with pytest.raises(RuntimeError):
            style.save(figure, path, ["x0"], broken_rows())
    assert (path.read_bytes(), path.with_suffix(".csv").read_bytes()) == before


def test_a_figure_makes_the_folder_it_goes_to(tmp_path):
    assert figures.sample_grid(bits(2, 64), (8, 8), str(tmp_path / "a" / "b" / "c.png"), "Samples from p").is_file()


def test_a_path_that_is_no_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'samples\.jpg' does not end in \.png"):
        figures.sample_grid(bits(2, 64), (8, 8), tmp_path / "samples.jpg", "Samples from p")
