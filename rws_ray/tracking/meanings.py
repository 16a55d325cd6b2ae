"""What the metrics of a run mean: the description that it carries in MLflow, and the table in docs/registry.md."""

from __future__ import annotations

import re

MEANINGS = {
    "epoch": "passes through the training data",
    "train_bound": "the estimator's bound on the training data at the K that it trains with, mean since the last "
    "report; as a cost, nats per example: lower is better",
    "train_num_samples": "that K",
    "valid_nll": "NLL of validation rows under the averaged weights, nats per example",
    "valid_nll_stderr": "its standard error over rows",
    "valid_num_samples": "its K",
    "best_valid_nll": "of a search: the lowest of any trial so far",
    "ess": "effective samples of K, mean over rows: of the training rows at each report, of the test rows at the end",
    "ess_ratio": "in training: effective samples as a share of K",
    "max_weight": "in training: the largest normalised weight of an example, mean over examples",
    "grad_norm_p": "length of p's gradient, mean over steps",
    "grad_norm_q": "length of q's gradient, mean over steps",
    "examples_per_second": "training examples a second of updates",
    "seconds": "time of updates so far",
    "eval_seconds": "time of the last validation estimate",
    "checkpoint_seconds": "time that the checkpoint before took to write",
    "test_nll": "NLL of the test rows under the weights of the best validation NLL, nats per example",
    "test_nll_stderr": "its standard error over rows",
    "test_num_samples": "its K",
    "test_nll_at": "the same from the first samples alone, as many as the name ends with (`test_nll_at_100`)",
    "test_nll_stderr_at": "its standard error",
    "test_nll_mean": "of an ensemble: mean of its members' test NLLs",
    "test_nll_sd": "of an ensemble: standard deviation (n − 1) of its members' test NLLs, over seeds",
    "valid_nll_mean": "likewise, of their lowest validation NLLs",
    "valid_nll_sd": "likewise",
    "rows": "test rows",
    "max_share": "of the test rows: the largest weight as a share of their sum",
    "khat": "of the test rows: median Pareto k̂ of the weights' tails; above 0.7 an error cannot be trusted",
    "khat_distrusted": "share of test rows with k̂ above 0.7",
    "independent_nll": "test NLL of independent units with the training means: the mark to beat",
    "best_epoch": "epoch of the best validation NLL",
    "epochs": "epochs trained",
    "kl_p_q": "KL(p‖q) of the hidden units on test rows, nats; with `/layer_N` that of layer N, data side first",
    "kl_q_p": "KL(q‖p), likewise",
    "dead_units": "hidden units that are always on or always off, likewise",
    "star_nll": "where an estimator fits p* ∝ √(p q): its test NLL",
    "star_nll_stderr": "its standard error",
    "log_z": "log of p*'s normalising constant",
    "log_z_stderr": "its standard error",
}


def row_of(metric: str) -> str:
    """The row of the table that tells of a metric: its name without a layer's or a K's number."""
    return re.sub(r"(/layer)?_\d+$", "", metric)


def described(metric: str) -> str:
    """What a metric means; KeyError where nothing is known of it."""
    return MEANINGS[row_of(metric)]


def table() -> str:
    """All of them in Markdown, a row each."""
    rows = [f"| `{metric}` | {meaning} |" for metric, meaning in MEANINGS.items()]
    return "\n".join(["| metric | meaning |", "|---|---|", *rows]) + "\n"
