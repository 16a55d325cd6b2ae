"""Search spaces: every range checked at the door, refusals are sentences, a trial is a function of (space, seed, n)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws_ray.config import flatten_job
from rws_ray.errors import ConfigError
from rws_ray.space import SHAPES, layer_widths, load_space

SPACES = sorted((Path(__file__).parents[1] / "tune_spaces").glob("*.toml"))


@pytest.fixture
def space_of(tmp_path):
    def load(text: str, *overrides: str):
        file = tmp_path / "space.toml"
        file.write_text(text)
        return load_space(str(file), list(overrides))

    return load


def draws(space):
    return [space.draw(number) for number in range(space.num_trials)]


def test_the_spaces_that_come_along_are_those_promised():
    assert [file.stem for file in SPACES] == [
        "binarized_mnist",
        "depth",
        "digits",
        "estimators",
        "num_samples",
        "wake_mix",
    ]


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_a_space_that_comes_along_is_sound_and_its_trials_differ(file):
    space = load_space(str(file), [])
    jobs = [flatten_job(space.job(values)) for values in draws(space)]
    assert len({str(job) for job in jobs}) == space.num_trials


def test_the_digits_space_searches_architecture_samples_mix_and_rates():
    space = load_space(str(SPACES[2]), [])
    searched = {key if not key.startswith("model.layers") else "model.layers" for key in space.domains}
    assert searched == {"model.layers", "estimator.num_samples", "estimator.wake_mix", "optim.lr", "optim.lr_q"}


def test_an_estimator_that_does_not_go_with_another_key_is_refused_before_anything_starts(space_of):
    with pytest.raises(ConfigError, match=r"vimco needs K ≥ 2, not 1.*choose nvil"):
        space_of('[estimator]\nname = { grid = ["rws", "vimco"] }\nnum_samples = { grid = [1, 5] }\n')
    space_of('[estimator]\nname = { grid = ["rws", "vimco"] }\nnum_samples = { grid = [2, 5] }\n')


def test_a_trials_values_depend_on_space_seed_and_number_alone(space_of):
    text = "[optim]\nlr = { loguniform = [0.1, 10.0] }\nepochs = { randint = [3, 9] }\n"
    space = space_of(text)
    assert draws(space) == draws(space_of(text))
    assert draws(space_of(text, "--search.num_trials", "40"))[:16] == draws(space)
    assert draws(space_of(text, "--seed", "1")) != draws(space)
    # A key's draws do not depend on which other keys are searched.
    assert [values["optim.lr"] for values in draws(space_of("[optim]\nlr = { loguniform = [0.1, 10.0] }\n"))] == [
        values["optim.lr"] for values in draws(space)
    ]


@given(st.floats(1e-3, 1), st.floats(2, 1e3), st.integers(0, 2**31))
def test_draws_stay_within_their_range(low, high, seed):
    from rws_ray.config import SearchConfig
    from rws_ray.space import Domain, Space

    ranges = {
        "a": Domain("uniform", (low, high), {}),
        "b": Domain("loguniform", (low, high), {}),
        "c": Domain("randint", (2, 4), {}),
    }
    space = Space({"seed": seed}, {key: (each,) for key, each in ranges.items()}, SearchConfig())
    for number in range(20):
        values = space.draw(number)
        assert low <= values["a"] <= high
        assert low * 0.999999 <= values["b"] <= high * 1.000001
        assert values["c"] in (2, 3, 4)


def test_both_ends_of_randint_and_each_option_of_a_choice_are_drawn(space_of):
    space = space_of("[estimator]\nnum_samples = { randint = [2, 4] }\nwake_mix = { choice = [0.0, 1.0] }\n")
    found = [space.draw(number) for number in range(100)]
    assert {values["estimator.num_samples"] for values in found} == {2, 3, 4}
    assert {values["estimator.wake_mix"] for values in found} == {0.0, 1.0}


def test_layers_follow_depth_width_and_shape(space_of):
    assert layer_widths(4, 400, "linear") == [400, 300, 200, 100]
    assert layer_widths(3, 200, "halving") == [200, 100, 50]
    assert layer_widths(2, 64, "constant") == [64, 64]
    assert layer_widths(4, 2, "halving") == [2, 1, 1, 1]  # no layer is empty
    space = space_of('model.layers = { depth = { randint = [1, 3] }, width = 64, shape = { choice = ["halving"] } }')
    assert {len(space.job(values).model.layers) for values in draws(space)} == {1, 2, 3}
    assert all(space.job(values).model.layers[0] == 64 for values in draws(space))


def test_every_shape_is_a_rule():
    assert all(layer_widths(3, 50, shape)[0] == 50 for shape in SHAPES)


def test_a_conditional_key_keeps_its_default_where_its_condition_does_not_hold(space_of):
    space = space_of(
        '[estimator]\nnum_samples = { choice = [2, 5], when = { estimator.name = "rws" } }\n'
        'name = { choice = ["rws", "wake-sleep"] }\n'
    )
    kinds = {(values["estimator.name"], values.get("estimator.num_samples")) for values in draws(space)}
    assert kinds == {("rws", 2), ("rws", 5), ("wake-sleep", None)}
    assert {space.job(values).estimator.num_samples for values in draws(space) if len(values) == 1} == {1}


def test_of_several_ranges_the_one_whose_condition_holds_counts(space_of):
    space = space_of(
        '[optim]\nname = { choice = ["natural", "adam"] }\nlr = [\n'
        '{ uniform = [1.0, 2.0], when = { optim.name = "natural" } },\n'
        '{ uniform = [0.001, 0.002], when = { optim.name = "adam" } }]\n'
    )
    for values in draws(space):
        assert (values["optim.lr"] >= 1) == (values["optim.name"] == "natural")


def test_a_grid_visits_each_combination_once(space_of):
    space = space_of(
        "[estimator]\nnum_samples = { grid = [1, 2, 5] }\nwake_mix = { choice = [0.0, 1.0] }\n"
        '[search]\nalgorithm = "grid"\n'
    )
    found = [tuple(values.values()) for values in draws(space)]
    assert sorted(found) == [(k, mix) for k in (1, 2, 5) for mix in (0.0, 1.0)]


def test_a_grids_conditions_leave_no_trial_that_repeats_another(space_of):
    space = space_of(
        '[estimator]\nname = { grid = ["rws", "wake-sleep"] }\n'
        'num_samples = { grid = [2, 5], when = { estimator.name = "rws" } }\n[search]\nalgorithm = "grid"\n'
    )
    assert space.num_trials == 3


def test_a_grid_within_a_random_search_is_visited_round_by_round(space_of):
    space = space_of("[optim]\nlr = { uniform = [0.1, 1.0] }\n[estimator]\nnum_samples = { grid = [1, 2, 5, 10] }\n")
    samples = [values["estimator.num_samples"] for values in draws(space)]
    assert len(samples) == 16
    assert all(sorted(samples[start : start + 4]) == [1, 2, 5, 10] for start in range(0, 16, 4))
    assert len({values["optim.lr"] for values in draws(space)}) == 16


def test_a_capped_grid_is_the_beginning_of_the_whole_one(space_of):
    text = 'seed = { grid = [1, 2, 3, 4, 5, 6, 7] }\n[search]\nalgorithm = "grid"\n'
    assert draws(space_of(text, "--search.num_trials", "3")) == draws(space_of(text))[:3]


def test_the_command_line_fixes_a_key_for_all_trials(space_of):
    text = "[optim]\nlr = { uniform = [0.1, 1.0] }\n[model]\nlayers = { depth = { randint = [1, 3] }, width = 9, "
    space = space_of(text + 'shape = "constant" }\n', "--model.layers", "8,4", "--optim.epochs", "3")
    assert list(space.domains) == ["optim.lr"]
    assert {tuple(space.job(values).model.layers) for values in draws(space)} == {(8, 4)}
    assert space.fixed["optim.epochs"] == 3


SENTENCES = {
    "estimator.num_sample = { choice = [1] }": [
        "no key 'estimator.num_sample'",
        "did you mean 'estimator.num_samples'",
    ],
    "optim.lr = { logunifrom = [0.1, 1] }": ["optim.lr", "did you mean 'loguniform'"],
    "optim.lr = { }": ["optim.lr", "found none"],
    "optim.lr = { uniform = [0.0, 1.0] }": ["optim.lr = 0.0", "greater than 0"],
    "optim.lr = { uniform = [1.0, 0.5] }": ["first end must be below"],
    "optim.lr = { loguniform = [-1.0, 0.5] }": ["above 0"],
    "optim.lr = { uniform = [1.0] }": ["takes two numbers"],
    "optim.lr = [{ uniform = [0.1, 1.0] }, 3.0]": ["3.0 is no range"],
    "estimator.num_samples = { choice = [] }": ["estimator.num_samples", "something in it"],
    "estimator.num_samples = { choice = [1, 0] }": ["estimator.num_samples = 0", "greater than or equal to 1"],
    "estimator.num_samples = { uniform = [1, 9] }": ["use randint"],
    "estimator.num_samples = { randint = [1.0, 9.0] }": ["two whole numbers"],
    "estimator.wake_mix = { choice = ['half'] }": ["estimator.wake_mix = 'half'"],
    "model.layers = { choice = [[8, 0]] }": ["model.layers = [8, 0]"],
    "model.layers = { depth = 2, width = 8 }": ["depth, width, shape"],
    "model.layers = { depth = 2, width = 8, shape = 'round' }": ["constant, linear, halving"],
    "model.layers = { depth = { randint = [0, 2] }, width = 8, shape = 'linear' }": ["model.layers.depth = 0"],
    "optim.lr = { uniform = [0.1, 1.0], when = { optim.nam = 'adam' } }": ["did you mean 'optim.name'"],
    "optim.lr = { uniform = [0.1, 1.0], when = 'adam' }": ["no table"],
    "optim.epochs = { choice = [1], when = { seed = 1 } }\nseed = { choice = [1], when = { optim.epochs = 1 } }": [
        "go in a circle"
    ],
    "data.name = { choice = ['digits', 'mnist'] }": ["data.name cannot be searched", "share it"],
    "eval.num_samples = { choice = [1, 100] }": ["cannot be searched"],
    "estimator.num_samples = { grid = [1, 2] }\noptim.lr = { uniform = [0.1, 1.0] }\nsearch.algorithm = 'grid'": [
        "optim.lr",
        "values that can be listed",
    ],
    "seed = { grid = [1, 2], when = { estimator.num_samples = 1 } }\nestimator.num_samples = { choice = [1, 2] }": [
        "can name grid keys only"
    ],
    "estimator.name = { choice = ['wake-sleep'] }\nestimator.num_samples = { choice = [3] }": [
        "wake-sleep is K = 1",
        "estimator.num_samples = 3",
    ],
    "search.algorithm = 'bayes'": ["search.algorithm = 'bayes'"],
    "search.num_trials = 0": ["search.num_trials = 0"],
    "optim = 3": ["no key 'optim'"],
}


@pytest.mark.parametrize("text", SENTENCES, ids=lambda text: text[:40])
def test_what_cannot_be_searched_is_told_in_a_sentence(space_of, text):
    with pytest.raises(ConfigError) as refusal:
        space_of(text)
    for part in SENTENCES[text]:
        assert part in str(refusal.value)


def test_a_grid_that_explodes_says_how_many_trials_and_asks_for_a_cap(space_of):
    numbers = list(range(1, 41))
    text = f"seed = {{ grid = {numbers} }}\noptim.epochs = {{ grid = {numbers} }}\nsearch.algorithm = 'grid'\n"
    with pytest.raises(ConfigError, match=r"1,600 trials: cap it with search\.num_trials"):
        space_of(text)
    assert space_of(text, "--search.num_trials", "10").num_trials == 10
    with pytest.raises(ConfigError, match="2,560,000 trials"):
        space_of(text + f"eval.every = {{ grid = {numbers} }}\noptim.patience = {{ grid = {numbers} }}\n")


def test_every_key_that_changes_a_trial_can_be_searched(space_of):
    from rws_ray.config import job_keys
    from rws_ray.space import SHARED_KEYS

    lists = {
        "model.layers": [[4], [5, 4]],
        "model.hidden": [[4], [5, 4]],
        "estimator.raise_num_samples": [[], [[1, 7]]],
    }
    for key in job_keys():
        if key.name.startswith((*SHARED_KEYS, "search.")) or key.name in ("model.warm_start",):
            continue
        value = lists.get(key.name, json.loads(key.default))
        options = value if key.name in lists else [1.0 if value is None else value]
        section, _, name = key.name.rpartition(".")
        line = f"{name} = {{ choice = {json.dumps(options)} }}"
        space = space_of(f"[{section}]\n{line}\n" if section else line + "\n")
        assert list(space.domains) == [key.name]
