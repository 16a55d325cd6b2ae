import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from rws_ray.report.terminal import Progress, count, duration, nll_text, table


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal:
    """A pseudo-terminal: `shown()` is all that was written to its `stream`."""

    def __init__(self):
        self._reader, writer = os.openpty()
        self.stream = os.fdopen(writer, "w", encoding="utf-8")

    def shown(self):
        print("\0", end="", file=self.stream, flush=True)  # marks the end, so that reading up to it never waits
        text = b""
        while not text.endswith(b"\0"):
            text += os.read(self._reader, 65536)
        return text[:-1].decode().replace("\r\n", "\n")

    def close(self):
        self.stream.close()
        os.close(self._reader)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    yield terminal
    terminal.close()


def plain_lines(clock, total, steps, **options):
    """Lines of a Progress that gets (seconds, done, text) one after the other."""
    stream = io.StringIO()
    with Progress(total, stream=stream, clock=clock, **options) as progress:
        for seconds, done, text in steps:
            clock.now += seconds
            progress.update(done, text)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("nll", "stderr", "num_samples", "text"),
    [
        (17.5234, 0.1432, 1000, "17.52 ± 0.14 nats (K = 1,000)"),
        (17.5234, 0.0034, 100000, "17.5234 ± 0.0034 nats (K = 100,000)"),
        (101.3, 2.46, 5, "101.3 ± 2.5 nats (K = 5)"),
        (1234.5, 31.0, 1, "1,234 ± 31 nats (K = 1)"),
        (0.5, 0.0, 5, "0.50 ± 0.00 nats (K = 5)"),
        (np.float32(97.25), np.float32(0.25), np.int64(100), "97.25 ± 0.25 nats (K = 100)"),
    ],
)
def test_an_nll_is_told_with_k_and_two_digits_of_its_standard_error(nll, stderr, num_samples, text):
    assert nll_text(nll, stderr, num_samples) == text


def test_an_unknown_standard_error_is_said_to_be_unknown():
    assert nll_text(17.5, float("nan"), 5) == "17.50 nats, standard error unknown (K = 5)"


@pytest.mark.parametrize(("stderr", "num_samples"), [(-0.1, 5), (0.1, 0)])
def test_an_nll_with_an_impossible_error_or_k_is_refused(stderr, num_samples):
    with pytest.raises(ValueError, match="standard error ≥ 0 and K ≥ 1"):
        nll_text(17.5, stderr, num_samples)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (0.96, "1 s"),
        (48.4, "48 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3840, "1 h 04 min"),
        (86399, "1 d 00 h"),
        (183_600, "2 d 03 h"),
    ],
)
def test_a_duration_shows_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_duration_that_is_no_span_of_time_is_refused(seconds):
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        duration(seconds)


def test_counts_have_thousands_separators():
    assert [count(n) for n in (0, 999, 1000, 1234567)] == ["0", "999", "1,000", "1,234,567"]


def test_a_table_aligns_words_left_and_numbers_right():
    rows = [["rws-digits", 1000, "17.52 ± 0.14", 0.05], ["rws-dna-long", 5, "105.1 ± 0.2", None]]
    assert table(["model", "K", "NLL", "lr"], rows, io.StringIO()).splitlines() == [
        "model             K           NLL    lr",
        "────────────  ─────  ────────────  ────",
        "rws-digits    1,000  17.52 ± 0.14  0.05",
        "rws-dna-long      5   105.1 ± 0.2",
    ]


def test_a_table_never_wraps_or_cuts_a_long_cell(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    name = "a name of many words " * 30
    assert name.strip() in table(["name", "K"], [[name, 5]], io.StringIO()).splitlines()[2]


def test_a_table_without_rows_is_its_header():
    assert table(["name", "K"], [], io.StringIO()).splitlines() == ["name  K", "────  ─"]


def test_wide_characters_keep_columns_aligned():
    lines = table(["name", "note"], [["数字", "a"], ["abcd", "b"]], io.StringIO()).splitlines()
    assert lines[2:] == ["数字  a", "abcd  b"]


def test_escape_sequences_and_line_breaks_in_cells_do_not_reach_the_terminal(terminal):
    shown = table(["note"], [["red \x1b[31m\nnext"]], terminal.stream)
    assert shown.splitlines()[2] == "red  [31m next"


def test_numpy_numbers_are_printed_as_numbers():
    assert table(["n", "x"], [[np.int64(12000), np.float32(0.1)]], io.StringIO()).splitlines()[2] == "12,000  0.1"


def test_a_row_that_does_not_fit_the_header_is_refused():
    with pytest.raises(ValueError, match="Row 1 of a table has 1 cells, its header 2"):
        table(["a", "b"], [["x", "y"], ["x"]])


def test_table_headers_are_bold_on_a_terminal_only(terminal, monkeypatch):
    assert table(["a"], [["x"]], terminal.stream).startswith("\x1b[1ma\x1b[0m\n")
    assert "\x1b" not in table(["a"], [["x"]], io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in table(["a"], [["x"]], terminal.stream)
    monkeypatch.setenv("NO_COLOR", "")  # empty is as unset
    assert "\x1b" in table(["a"], [["x"]], terminal.stream)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in table(["a"], [["x"]], terminal.stream)


def test_a_progress_line_says_where_the_work_is_and_when_it_ends(clock):
    metrics = "NLL 101.3 ± 0.2 (K = 100)  ESS/K 0.31  8,120 examples/s"
    lines = plain_lines(clock, 50, [(60, 10, ""), (5, 11, metrics)])
    # 65 s for 11 epochs, and 39 to go
    assert lines[-1] == f"epoch 11/50  {metrics}  ETA 3 min 50 s"


def test_lines_of_one_job_are_aligned(clock):
    assert plain_lines(clock, 5000, [(2, 1, ""), (2, 1000, "")], unit="row")[0].startswith("row     1/5,000  ETA")


def test_the_last_line_says_how_long_the_work_took(clock):
    assert plain_lines(clock, 2, [(100, 1, "a"), (100, 2, "b")])[-1] == "epoch 2/2  b  took 3 min 20 s"


def test_plain_lines_come_at_most_one_a_second_and_the_last_is_never_lost(clock):
    lines = plain_lines(clock, 100, [(0.25, done, "") for done in range(1, 51)])
    positions = [int(re.match(r"epoch +(\d+)/100", line)[1]) for line in lines]
    assert positions == [*range(1, 50, 4), 50]


def test_the_end_of_the_work_is_printed_at_once_and_once(clock):
    stream = io.StringIO()
    with Progress(3, stream=stream, clock=clock) as progress:
        for done in (1, 2, 3):
            progress.update(done)
        at_once = stream.getvalue()
    assert at_once == stream.getvalue() == "epoch 1/3\nepoch 3/3  took 0.0 s\n"


def test_a_held_line_is_printed_when_the_work_fails(clock):
    stream = io.StringIO()

    def work():
        with Progress(9, stream=stream, clock=clock) as progress:
            progress.update(1, "first")
            progress.update(2, "second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert stream.getvalue().splitlines() == ["epoch 1/9  first", "epoch 2/9  second"]


def test_the_eta_of_resumed_work_counts_only_what_this_process_did(clock):
    progress = Progress(50, start=40, stream=io.StringIO(), clock=clock)
    clock.now += 20
    progress.update(42)
    assert progress.eta() == pytest.approx(80)


def test_the_eta_follows_the_recent_pace(clock):
    progress = Progress(100, stream=io.StringIO(), clock=clock)
    for done in range(1, 21):  # a slow start: 60 s each
        clock.now += 60
        progress.update(done)
    for done in range(21, 41):
        clock.now += 5
        progress.update(done)
    assert progress.eta() == pytest.approx(60 * 5)


def test_the_eta_of_quick_updates_is_taken_over_seconds_not_over_a_few_of_them(clock):
    progress = Progress(1000, stream=io.StringIO(), clock=clock)
    for done in range(1, 201):  # 0.1 s each, every hundredth of them 5 s
        clock.now += 5 if done % 100 == 0 else 0.1
        progress.update(done)
    assert progress.eta() == pytest.approx(800 * (2 * 5 + 198 * 0.1) / 200)


def test_the_eta_runs_down_between_updates_and_not_below_zero(clock):
    progress = Progress(3, stream=io.StringIO(), clock=clock)
    assert progress.eta() is None
    clock.now += 10
    progress.update(1)
    clock.now += 5
    assert progress.eta() == pytest.approx(15)
    clock.now += 100
    assert progress.eta() == 0


def test_work_that_steps_back_to_a_checkpoint_is_paced_anew(clock):
    lines = plain_lines(clock, 20, [(10, 1, ""), (10, 2, ""), (90, 1, ""), (4, 2, "")])
    assert lines[2:] == ["epoch  1/20", "epoch  2/20  ETA 1 min 12 s"]


def test_work_of_zero_steps_shows_nothing(clock):
    assert plain_lines(clock, 0, []) == []


def test_each_plain_line_is_flushed(clock):
    class Log(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed = len(self.getvalue())

    log = Log()
    with Progress(5, stream=log, clock=clock) as progress:
        progress.update(1, "x")
        assert log.flushed == len("epoch 1/5  x\n")


def test_progress_goes_to_stdout_unless_told_otherwise(clock, capsys):
    with Progress(5, clock=clock) as progress:
        progress.update(1)
    assert capsys.readouterr().out == "epoch 1/5\n"


def test_a_terminal_shows_a_bar_with_eta_and_metrics(terminal, clock):
    with Progress(50, stream=terminal.stream, clock=clock) as progress:
        clock.now += 10
        progress.update(25, "NLL 101.3 ± 0.2 (K = 100)  [not markup]")
    shown = terminal.shown()
    assert "\x1b[36m" in shown  # cyan
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", shown)
    assert re.search(r"epoch 25/50 +[━╸╺]+ +ETA 10 s", plain)
    assert plain.rstrip().endswith("NLL 101.3 ± 0.2 (K = 100)  [not markup]")


def test_no_color_takes_the_colour_out_of_the_bar(terminal, clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with Progress(50, stream=terminal.stream, clock=clock) as progress:
        progress.update(25)
    shown = terminal.shown()
    assert "━" in shown
    assert not re.search(r"\x1b\[[\d;]*m", shown)


def test_what_others_print_stands_above_the_bar(terminal, clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    with Progress(50, clock=clock) as progress:
        progress.update(1, "metrics")
        print("a worker's line")
    shown = terminal.shown()
    assert "a worker's line\n" in shown
    assert shown.rindex("metrics") > shown.index("a worker's line")


def test_a_dumb_terminal_and_a_forced_colour_get_plain_lines(terminal, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Progress(5, stream=terminal.stream, clock=clock) as progress:
        progress.update(1, "x")
    assert terminal.shown() == "epoch 1/5  x\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert plain_lines(clock, 5, [(0, 1, "x")]) == ["epoch 1/5  x"]


def test_importing_the_room_loads_no_heavy_library():
    code = "import sys, rws_ray.report.figures, rws_ray.report.terminal; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "rich", "torch", "ray", "mlflow", "pydantic"} & set(loaded)
