"""Write log p̂(x) and its Monte-Carlo error for each row of a data set.

python -m rws_ray.score models:/rws-digits@champion --data digits --out scores.parquet
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rws_ray.config import home
from rws_ray.errors import ConfigError, run_command
from rws_ray.evaluate import parser
from rws_ray.report.terminal import Progress, count, nll_text
from rws_ray.tracking import fetch_model

EXAMPLE = "example: python -m rws_ray.score models:/rws-digits@champion --data new.parquet --out scores.parquet"


def main(arguments: list[str]) -> None:
    """The command."""
    arguments_parser = parser("Write the log-likelihood of each row.", EXAMPLE)
    arguments_parser.add_argument("--data", required=True, help="set, or .parquet file")
    arguments_parser.add_argument("--out", required=True, metavar="FILE", help=".parquet to write")
    asked = arguments_parser.parse_args(arguments)
    out = Path(asked.out)
    if out.suffix != ".parquet" or not out.parent.is_dir():
        raise ConfigError(f"--out: {out} must end in .parquet and lie in a folder that exists.")
    folder = fetch_model(asked.model, home())

    from rws_ray.cluster.scoring import load_model, score_models
    from rws_ray.data import open_split
    from rws_ray.training.estimation import summary

    split = open_split(asked.data, asked.split, asked.data_path, asked.binarize)
    machine = load_model(folder)
    with Progress(split.num_rows, unit="row") as progress:
        estimate = score_models(
            [machine],
            split,
            asked.num_samples,
            asked.seed,
            asked.num_workers,
            told=lambda done, total: progress.update(split.num_rows * done // total),
        )[0]
    facts = {"model": asked.model, "data": asked.data, "seed": asked.seed, "sha256_raw": split.sha256}
    write_scores(out, estimate, facts)
    found = summary(estimate)
    print(f"{out}: {count(split.num_rows)} rows, NLL {nll_text(found['nll'], found['nll_stderr'], asked.num_samples)}")


def write_scores(out: Path, estimate: Any, facts: dict[str, Any]) -> None:
    """One row a row: log_prob and its error in nats, the effective sample size; how it was made, as metadata."""
    import pyarrow.parquet as pq

    from rws_ray.cluster.api import scores_table

    aside = out.with_name(f".{out.name}.new")
    pq.write_table(scores_table(estimate, facts), aside)
    aside.replace(out)


if __name__ == "__main__":
    run_command(main)
