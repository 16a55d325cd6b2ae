"""The paper's experiments and its figures: which files hold them, and what is printed where (NLL in nats).

Bornschein & Bengio, Reweighted Wake-Sleep, ICLR 2015 (arXiv 1406.2751). K is that of the published estimate.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A published test NLL, the K that it was estimated with (None: not known), and where it stands."""

    nll: float
    num_samples: int | None
    place: str


class Experiment(NamedTuple):
    """One experiment: its job and space files, and how its figure shows it.

    Attributes:
        name: of its part of the page and of its figure.
        files: below the folder of the repository or of the package.
        x: `rows` (one line a row), `differences` (the same, less the published figure: rows of unlike data), or what
            its curves are drawn over: `training samples`, `test samples`.
    """

    name: str
    title: str
    files: tuple[str, ...]
    x: str = "rows"


EXPERIMENTS = (
    Experiment("wake_sleep", "Wake-sleep against Reweighted Wake-Sleep", ("tune_spaces/paper/wake_sleep.toml",)),
    Experiment("q_updates", "Sleep, wake, or both for q", ("tune_spaces/paper/q_updates.toml",)),
    Experiment(
        "depth",
        "One to six layers, and the headline",
        (
            "tune_spaces/paper/depth.toml",
            "jobs/paper/headline.toml",
            "jobs/paper/headline_long.toml",
            "jobs/paper/headline_tuned.toml",
            "jobs/paper/headline_smooth.toml",
            "jobs/paper/headline_dynamic.toml",
        ),
    ),
    Experiment(
        "test_samples",
        "The number of test samples",
        ("jobs/paper/test_samples.toml", "jobs/paper/headline_tuned.toml", "jobs/paper/headline_smooth.toml"),
        "test samples",
    ),
    Experiment(
        "training_samples",
        "The number of training samples",
        ("tune_spaces/paper/training_samples.toml",),
        "training samples",
    ),
    Experiment("layer_kinds", "Kinds of layers", ("tune_spaces/paper/layer_kinds.toml",)),
    Experiment(
        "other_data",
        "Other data",
        ("jobs/paper/adult.toml", "jobs/paper/connect4.toml", "jobs/paper/dna.toml", "jobs/paper/ocr_letters.toml"),
        "differences",
    ),
)

MNIST, BEST, Q, UCI = "table of MNIST", "table of best models", "text on q's updates", "table of UCI sets"
HEADLINE = "binarized_mnist, 400-300-200-100-10"

# File's stem and row → figure. Quoted as remembered by people who know the paper, not checked against its pages.
PUBLISHED = {
    ("wake_sleep", "200, wake-sleep"): Published(116.3, 100_000, MNIST),
    ("wake_sleep", "200-200, wake-sleep"): Published(106.9, 100_000, MNIST),
    ("wake_sleep", "200-200-200, wake-sleep"): Published(101.3, 100_000, MNIST),
    ("wake_sleep", "200, rws, K = 5"): Published(103.1, 100_000, MNIST),
    ("wake_sleep", "200-200, rws, K = 5"): Published(93.4, 100_000, MNIST),
    ("wake_sleep", "200-200-200, rws, K = 5"): Published(90.1, 100_000, MNIST),
    ("q_updates", "wake_mix 0"): Published(93.4, None, Q),
    ("q_updates", "wake_mix 0.5"): Published(91.9, None, Q),
    ("q_updates", "wake_mix 1"): Published(92.8, None, Q),
    ("headline", HEADLINE): Published(85.48, 100_000, BEST),
    ("headline_long", f"{HEADLINE}, from paper-headline"): Published(85.48, 100_000, BEST),
    ("headline_tuned", f"{HEADLINE}, from paper-headline-long"): Published(85.48, 100_000, BEST),
    ("headline_smooth", f"{HEADLINE}, from paper-headline-tuned"): Published(85.48, 100_000, BEST),
    ("layer_kinds", "p sbn, q sbn"): Published(103.1, 100_000, MNIST),
    ("layer_kinds", "p sbn, q nade"): Published(95.0, 500, MNIST),
    ("layer_kinds", "p ar-sbn, q nade"): Published(89.2, 500, MNIST),
    ("layer_kinds", "p nade, q nade"): Published(86.8, 500, MNIST),
    ("adult", "adult, 200-50, p ar-sbn+sbn+sbn"): Published(13.16, None, f"{UCI}, NADE layers"),
    ("connect4", "connect4, 200-50, p ar-sbn+sbn+sbn"): Published(11.68, None, f"{UCI}, NADE layers"),
    ("dna", "dna, 150-10"): Published(90.63, None, f"{UCI}, SBN layers"),
    ("ocr_letters", "ocr_letters, 200-50"): Published(29.99, None, f"{UCI}, SBN layers"),
}
