import json
import pickle
import re
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from rws_ray.core import HelmholtzMachine
from rws_ray.core.storage import CONFIG_FILE, WEIGHTS_FILE

ROWS = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])


@pytest.fixture
def saved(tmp_path):
    """A folder with a stored machine."""
    machine = HelmholtzMachine(4, [3, 2], shape=(2, 2)).initialize(5)
    machine.save(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder, edit):
    tensors = {name: value.clone() for name, value in load_file(folder / WEIGHTS_FILE).items()}
    save_file(edit(tensors), folder / WEIGHTS_FILE)


def assert_refused(folder, file):
    """Loading fails in one sentence that begins with the damaged file."""
    with pytest.raises(ValueError, match="^" + re.escape(str(folder / file))) as caught:
        HelmholtzMachine.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_machine_comes_back_bit_for_bit(tmp_path):
    machine = HelmholtzMachine(4, [3, 2], shape=(2, 2)).initialize(5)
    with torch.no_grad():
        machine.p[0].bias.copy_(torch.tensor([-0.0, 1e-45, 3.4e38, 1 / 3]))
    machine.save(tmp_path / "new" / "model")
    loaded = HelmholtzMachine.load(tmp_path / "new" / "model")
    assert loaded.config() == machine.config()
    assert loaded.state_dict().keys() == machine.state_dict().keys()
    for name, value in machine.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].view(torch.int32), value.view(torch.int32))


def test_a_loaded_machine_gives_the_same_numbers_and_is_stored_as_the_same_bytes(saved, tmp_path):
    machine, loaded = HelmholtzMachine(4, [3, 2], shape=(2, 2)).initialize(5), HelmholtzMachine.load(saved)
    assert torch.equal(loaded.log_likelihood(ROWS, 50), machine.log_likelihood(ROWS, 50))
    loaded.save(tmp_path / "again")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (saved / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_float64_machine_is_stored_as_float32(tmp_path):
    machine = HelmholtzMachine(4, [3]).initialize(0).double()
    machine.save(tmp_path)
    assert HelmholtzMachine.load(tmp_path).prior.bias.dtype == torch.float32
    assert machine.prior.bias.dtype == torch.float64


def test_a_loaded_machine_can_be_trained_and_outlives_its_files(saved):
    loaded = HelmholtzMachine.load(saved)
    expected = loaded.log_likelihood(ROWS, 5)
    for file in saved.iterdir():
        file.write_bytes(b"")
        file.unlink()
    assert torch.equal(loaded.log_likelihood(ROWS, 5), expected)
    assert all(value.requires_grad for value in loaded.parameters())


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(ValueError, match=f"model holds no model: {file} is missing"):
        HelmholtzMachine.load(saved)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere holds no model: config\.json is missing"):
        HelmholtzMachine.load(tmp_path / "nowhere")


def test_weights_that_were_cut_off_anywhere_are_refused(saved):
    whole = (saved / WEIGHTS_FILE).read_bytes()
    for length in [0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 4, len(whole) - 1]:
        (saved / WEIGHTS_FILE).write_bytes(whole[:length])
        assert_refused(saved, WEIGHTS_FILE)


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 64, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]", b"hello world, this is no model"],
    ids=["ones", "vast header", "list header", "text"],
)
def test_weights_that_are_no_safetensors_are_refused(saved, content):
    (saved / WEIGHTS_FILE).write_bytes(content)
    assert_refused(saved, WEIGHTS_FILE)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: {**tensors, "p.0.weight": tensors["p.0.weight"].T.contiguous()},
        lambda tensors: {**tensors, "prior.bias": torch.zeros(3)},
        lambda tensors: {**tensors, "prior.bias": torch.zeros(2, 1)},
        lambda tensors: {**tensors, "prior.bias": tensors["prior.bias"].double()},
        lambda tensors: {**tensors, "prior.bias": tensors["prior.bias"].half()},
        lambda tensors: {**tensors, "extra": torch.zeros(1)},
        lambda tensors: {name: value for name, value in tensors.items() if name != "q.1.bias"},
        lambda tensors: {},
        lambda tensors: {**tensors, "q.0.bias": torch.tensor([0.0, float("nan"), 0.0])},
        lambda tensors: {**tensors, "q.0.bias": torch.tensor([0.0, float("-inf"), 0.0])},
    ],
    ids=["transposed", "wider", "rank", "float64", "float16", "extra", "missing", "none", "nan", "inf"],
)
def test_tensors_other_than_the_configurations_are_refused(saved, edit):
    edit_tensors(saved, edit)
    assert_refused(saved, WEIGHTS_FILE)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"3", b"[" * 100_000, b'{"dim": ' + b"1" * 5000 + b"}"],
    ids=["empty", "cut", "binary", "list", "null", "number", "deep", "long number"],
)
def test_a_configuration_that_is_no_json_object_is_refused(saved, content):
    (saved / CONFIG_FILE).write_bytes(content)
    assert_refused(saved, CONFIG_FILE)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "something.else"},
        {"format": None},
        {"version": 2},
        {"version": "1"},
        {"version": None},
        {"surplus": 1},
        {"dim": True},
        {"layers": [True, 2]},
        {"dim": 4.0},
        {"dim": "4"},
        {"dim": 0},
        {"dim": -4},
        {"dim": float("nan")},
        {"dim": 10**30},
        {"layers": []},
        {"layers": 3},
        {"layers": [3, 0]},
        {"layers": [3, [2]]},
        {"shape": None},
        {"shape": [2, "2"]},
        {"p_layer": "unknown"},
        {"q_layer": ["sbn"]},
    ],
    ids=str,
)
def test_a_configuration_of_the_wrong_kind_is_refused(saved, changes):
    edit_config(saved, **changes)
    assert_refused(saved, CONFIG_FILE)


@pytest.mark.parametrize("key", ["format", "version", "dim", "layers", "shape", "p_layer", "q_layer"])
def test_a_configuration_without_one_of_its_keys_is_refused(saved, key):
    config = json.loads((saved / CONFIG_FILE).read_text())
    del config[key]
    (saved / CONFIG_FILE).write_text(json.dumps(config))
    assert_refused(saved, CONFIG_FILE)


def test_a_shape_that_does_not_hold_the_units_is_refused(saved):
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(config | {"shape": [7, 9]}))
    assert_refused(saved, CONFIG_FILE)


@pytest.mark.parametrize(
    "changes",
    [{"dim": 5, "shape": []}, {"layers": [3]}, {"layers": [2, 3]}, {"dim": 10**6, "shape": [], "layers": [10**6] * 2}],
    ids=str,
)
def test_a_configuration_that_disagrees_with_the_weights_is_refused_before_any_memory_is_taken(saved, changes):
    edit_config(saved, **changes)
    assert_refused(saved, WEIGHTS_FILE)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_planted_in_the_folder_is_never_touched(saved, tmp_path):
    marker = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(marker))
    for name in ("model.pkl", "model.pt", "pytorch_model.bin", "data.pkl", "python_model.pkl", "__init__.py"):
        (saved / name).write_bytes(bomb)
    HelmholtzMachine.load(saved)
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        (saved / file).write_bytes(bomb)
        assert_refused(saved, file)
    torch.save(Bomb(marker), saved / WEIGHTS_FILE)
    HelmholtzMachine(4, [3, 2], shape=(2, 2)).save(tmp_path / "whole")
    (saved / CONFIG_FILE).write_bytes((tmp_path / "whole" / CONFIG_FILE).read_bytes())
    assert_refused(saved, WEIGHTS_FILE)
    assert not marker.exists()
    pickle.loads(bomb).close()
    assert marker.exists()  # the charge was live
