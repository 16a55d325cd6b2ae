"""Draw examples from a model's p and show them; the samples lie beside the picture as CSV.

python -m rws_ray.sample models:/rws-digits@champion --num 100 --out samples.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rws_ray.config import home
from rws_ray.errors import ConfigError, run_command
from rws_ray.evaluate import positive
from rws_ray.tracking import fetch_model

EXAMPLE = "example: python -m rws_ray.sample models:/rws-digits@champion --num 100 --out samples.png"


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Draw examples from a model.", epilog=EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS, a run's name or id, or a folder")
    parser.add_argument("--num", type=positive, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", default="samples.png", metavar="FILE", help=".png to write (default: samples.png)")
    asked = parser.parse_args(arguments)
    out = Path(asked.out)
    if out.suffix != ".png" or not out.parent.is_dir():
        raise ConfigError(f"--out: {out} must end in .png and lie in a folder that exists.")
    folder = fetch_model(asked.model, home())

    from rws_ray.cluster.scoring import load_model
    from rws_ray.report.figures import sample_grid

    machine = load_model(folder)
    picture = sample_grid(machine.sample_prior(asked.num, asked.seed), machine.shape, out, "Samples from p")
    print(f"{picture}: {asked.num} samples from p; their values in {picture.with_suffix('.csv')}")


if __name__ == "__main__":
    run_command(main)
