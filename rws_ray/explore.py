"""Open a page on this machine to draw, dream, complete and compare with a model.

python -m rws_ray.explore models:/rws-digits@champion
"""

from __future__ import annotations

import argparse
import json
import webbrowser
from pathlib import Path

from rws_ray.config import home
from rws_ray.errors import InfrastructureError, RwsError, run_command
from rws_ray.evaluate import positive
from rws_ray.tracking import connect, fetch_model, is_empty, list_versions, model_names, registered_version

EXAMPLE = "example: python -m rws_ray.explore models:/rws-digits@champion"
NUM_EXAMPLES = 200


def main(arguments: list[str]) -> None:
    """The command: it serves the page until it is interrupted."""
    parser = argparse.ArgumentParser(description="Play with a model on a local page.", epilog=EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS, a run's name or id, or a folder")
    parser.add_argument("--other", metavar="MODEL", help="to compare with, beside those that are registered")
    parser.add_argument("--port", type=positive, default=8500, help="default: 8500")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    asked = parser.parse_args(arguments)
    folder = fetch_model(asked.model, home())

    import uvicorn

    from rws_ray.cluster.scoring import load_model
    from rws_ray.cluster.serving import check_free
    from rws_ray.explorer.app import Models, new_app

    check_free("127.0.0.1", asked.port)
    models = Models(choices(asked.model, asked.other), load_model)
    app = new_app(models, examples(folder))
    address = f"http://127.0.0.1:{asked.port}"
    print(f"{models.uris[0]} is shown at {address}; Ctrl-C ends it.", flush=True)
    if not asked.no_browser:
        webbrowser.open(address)
    uvicorn.run(app, host="127.0.0.1", port=asked.port, log_level="warning")


def choices(model: str, other: str | None) -> list[str]:
    """References of what may be shown: the model itself, the other, and every registered version."""
    named = [model, *([other] if other else [])]
    uris = []
    for reference in named:
        fetch_model(reference, home())
        version = registered_version(reference, home())
        uris.append(version.uri if version else reference)
    try:
        if not is_empty(home()):
            tracking = connect(home())
            uris += [version.uri for name in model_names(tracking) for version in list_versions(tracking, name)]
    except InfrastructureError:
        pass  # a folder can be looked at with MLflow away
    return list(dict.fromkeys(uris))


def examples(folder: Path) -> list[list[int]]:
    """Test rows of what the model was trained on; none where these data are not here."""
    from rws_ray.data import open_split

    try:
        data = json.loads((folder / "job.json").read_text())["data"]
        split = open_split(data["name"], "test", data.get("path"), data.get("binarize"))
    except (OSError, ValueError, KeyError, RwsError):
        return []
    return rows_of(split)


def rows_of(split: object) -> list[list[int]]:
    """The first rows of a split, as lists of 0 and 1."""
    import torch

    from rws_ray.core.streams import keyed
    from rws_ray.training.batches import Examples

    taken = Examples(split, torch.device("cpu"))  # type: ignore[arg-type]
    index = torch.arange(min(NUM_EXAMPLES, taken.num_rows))
    return taken.take(index, keyed(0, "examples")).int().tolist()


if __name__ == "__main__":
    run_command(main)
