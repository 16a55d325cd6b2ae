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

FORMAT = "rws_ray.helmholtz"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_UNITS = 1_000_000
KINDS = ("sbn",)


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
    if set(arguments) != expected:
        raise ValueError(f"{file} must have the keys {sorted(expected)}, not {sorted(arguments)}")
    layers, shape = arguments["layers"], arguments["shape"]
    if not isinstance(layers, list) or not layers or not all(map(_is_width, [arguments["dim"], *layers])):
        raise ValueError(f"{file}: dim and layers must be whole numbers from 1 to {MAX_UNITS}")
    if not isinstance(shape, list) or not all(map(_is_width, shape)):
        raise ValueError(f"{file}: shape must be a list of whole numbers, not {shape!r}")
    if shape and math.prod(shape) != arguments["dim"]:
        raise ValueError(f"{file}: shape {shape} does not hold the {arguments['dim']} units of dim")
    for key in ("p_layer", "q_layer"):
        if arguments[key] not in KINDS:
            raise ValueError(f"{file}: {key} is {arguments[key]!r}; this program knows {', '.join(KINDS)}")
    return arguments


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
