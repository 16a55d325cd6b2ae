"""A stored model: config.json and model.safetensors. Data only: nothing in it is ever executed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rws_ray.kinds import KINDS, stacks

FORMAT = "rws_ray.helmholtz"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_UNITS = 1_000_000
SINCE = {"hidden", "nade_hidden"}  # keys that older models do not have


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files, the weights first: a fresh folder is complete once it has a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    text = json.dumps({"format": FORMAT, "version": VERSION, **config}, indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n")


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checked configuration and the tensors; ValueError (a sentence) where either is missing or damaged."""
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ValueError(f"{folder} holds no model: {file.name} is missing")
    try:
        config = json.loads(config_file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{config_file} is damaged: {error}") from None
    try:
        tensors = load_file(weights_file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{weights_file} is damaged: {error}") from None
    return check_config(config_file, config), tensors


def check_config(file: Path, config: Any) -> dict[str, Any]:
    """The constructor's arguments out of a config.json, each of the right type and a sane size."""
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{file} does not describe a Helmholtz machine (format {FORMAT!r})")
    if config.get("version") != VERSION:
        raise ValueError(f"{file} has format version {config.get('version')!r}; this program reads {VERSION}")
    arguments = {key: value for key, value in config.items() if key not in ("format", "version")}
    expected = {"dim", "layers", "shape", "p_layer", "q_layer"}
    if not expected <= set(arguments) <= expected | SINCE:
        raise ValueError(f"{file} must have the keys {sorted(expected | SINCE)}, not {sorted(arguments)}")
    layers, shape = arguments["layers"], arguments["shape"]
    if not isinstance(layers, list) or not layers or not all(map(_is_width, [arguments["dim"], *layers])):
        raise ValueError(f"{file}: dim and layers must be whole numbers from 1 to {MAX_UNITS}")
    if not isinstance(shape, list) or not all(map(_is_width, shape)):
        raise ValueError(f"{file}: shape must be a list of whole numbers, not {shape!r}")
    if shape and math.prod(shape) != arguments["dim"]:
        raise ValueError(f"{file}: shape {shape} does not hold the {arguments['dim']} units of dim")
    hidden, nade_hidden = arguments.get("hidden"), arguments.get("nade_hidden")
    if hidden is not None and not (isinstance(hidden, list) and len(hidden) <= 100 and all(map(_is_width, hidden))):
        raise ValueError(f"{file}: hidden must be at most 100 whole numbers from 1 to {MAX_UNITS}, not {hidden!r:.99}")
    if nade_hidden is not None and not _is_width(nade_hidden):
        raise ValueError(f"{file}: nade_hidden must be a whole number from 1 to {MAX_UNITS}, not {nade_hidden!r}")
    _check_kinds(file, arguments["p_layer"], arguments["q_layer"], len(layers))
    return arguments


def _check_kinds(file: Path, p_layer: Any, q_layer: Any, depth: int) -> None:
    for key, choice in (("p_layer", p_layer), ("q_layer", q_layer)):
        kinds = choice if isinstance(choice, list) else [choice]
        if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in KINDS]:
            raise ValueError(
                f"{file}: {key} is {unknown[0]!r}, which this process does not know; it knows {', '.join(KINDS)}. A "
                "stored model brings no code: register the kind's class before it is loaded (docs/extending.md)"
            )
    try:
        stacks(p_layer, q_layer, depth)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_UNITS


def check_tensors(folder: Path, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """ValueError unless the tensors are exactly those that the configuration asks for, float32 and finite."""
    if set(tensors) != set(shapes):
        odd = sorted(set(tensors) ^ set(shapes))
        raise ValueError(f"{folder / WEIGHTS_FILE} and {CONFIG_FILE} disagree about {', '.join(odd[:4])}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float32:
            raise ValueError(
                f"{folder / WEIGHTS_FILE}: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"{CONFIG_FILE} asks for torch.float32 {shapes[name]}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{folder / WEIGHTS_FILE}: {name} holds values that are not finite")
