"""Settings: what is accepted, how mistakes read, and which of them move a stage's output to another place."""

import copy
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pahi.artifacts import fingerprint
from pahi.artifacts.fingerprint import canonical_json
from pahi.errors import UserError
from pahi.settings import RUNTIME, Settings, Tree, load_settings, presets


def mistake(**kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        load_settings(**kwargs)
    message = str(error.value)
    assert "\n" not in message and error.value.exit_code == 2
    return message


# ------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_loads_and_survives_json(name: str) -> None:
    settings = load_settings(name)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    assert {"title", "size", "memory", "license"} <= set(presets()[name]["about"])


def test_overrides_are_parsed_as_yaml() -> None:
    settings = load_settings(
        overrides=[
            "train.steps=500",
            "train.lr=4e-3",
            "train.reward_cap=2",
            "train.reward_cap=null",
            "evaluate.best_of=[16, 4, 4]",
            "curate.min_score={pick_alpha: 20.5}",
            "curate.title=a=b",
            "root=s3://bucket/prefix",
        ]
    )
    assert settings.train.steps == 500 and settings.train.lr == 0.004 and settings.train.reward_cap is None
    assert settings.evaluate.best_of == [4, 16] and settings.curate.min_score == {"pick_alpha": 20.5}
    assert settings.curate.title == "a=b" and settings.root == "s3://bucket/prefix"
    untouched = load_settings()
    assert settings.train.model_copy(update={"steps": 1}) == untouched.train.model_copy(
        update={"steps": 1, "lr": 0.004}
    )


def test_preset_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 7, hidden: 9}\nname: mine\n")
    settings = load_settings(file=str(file), overrides=["train.steps=8"])
    assert (settings.train.steps, settings.train.hidden, settings.name) == (8, 9, "mine")
    assert settings.train.beta == load_settings().train.beta
    assert load_settings(name="other", root=None).name == "other"
    assert load_settings().name == "tiny", "one call's values must not reach the next"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stepz=5", ["train.stepz", "did you mean 'steps'"]),
        ("tain.steps=5", ["'tain'", "did you mean 'train'"]),
        ("train.steps.more=5", ["train.steps"]),
        ("train.steps=many", ["train.steps"]),
        ("train.steps=-1", ["train.steps"]),
        ("rewards.train.9.weight=2", ["'train' has entries 0 to"]),
        ("generator.dtype=float8", ["generator.dtype", "bfloat16"]),
        ("name=Not A Name", ["name"]),
        ("evaluate.best_of=[1]", ["evaluate.best_of", "best of fewer than 2"]),
        ("evaluate.optimise=[1]", ["evaluate.optimise", "fewer than 2 steps"]),
        ("evaluate.export=[geneva]", ["evaluate.export", "t2i-compbench"]),
        ("train.steps", ["key=value"]),
        ("=5", ["key=value"]),
        ("ingest.sources=[]", ["ingest.sources"]),
        ("ingest.sources=[{path: a.txt, lable: b}]", ["ingest.sources.0.lable"]),
        ("rewards.train=[{name: a, kind: pickscore, id: x, wieght: 1}]", ["did you mean 'weight'"]),
        ("generator.parts.vae.idd=x", ["generator.parts.vae.id"]),
        ("generator.parts={vae: {id: x, fille: y}}", ["generator.parts.vae.fille", "did you mean 'file'"]),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(override: str, parts: list[str]) -> None:
    message = mistake(overrides=[override])
    for part in parts:
        assert part in message


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_override_ends_in_a_traceback(key: str, value: str) -> None:
    try:
        load_settings(overrides=[f"{key}={value}"])
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["train: {steps: 5", "- a\n- b\n", "train: 5\n", "1: 2\n", "\x00", "tain: {}\n"])
def test_mistakes_in_a_file_are_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    mistake(file=str(file))
    mistake(file=str(tmp_path / "absent.yaml"))


def test_an_unknown_preset_is_suggested() -> None:
    assert "did you mean 'tiny'" in mistake(preset="tny")


@pytest.mark.parametrize("key", ["root", "generator.id", "ingest.sources.path"])
def test_an_address_that_holds_a_password_is_refused_without_repeating_it(key: str) -> None:
    address = "s3://key:very-secret@bucket/prefix"
    override = f"ingest.sources=[{{path: '{address}'}}]" if key.startswith("ingest") else f"{key}={address}"
    message = mistake(overrides=[override])
    assert "password" in message and "very-secret" not in message


@pytest.mark.parametrize("place", ["s3://bucket/a@b:c", "pkg:pahi.tiny/weights", "simplecache::s3://b/k", "/a b/c@d:e"])
def test_ordinary_addresses_are_no_passwords(place: str) -> None:
    assert load_settings(overrides=[f"root='{place}'"]).root == place


# ------------------------------------------------------------------------------------------------------- rewards

ALPHA = {"name": "alpha", "kind": "pickscore", "id": "models/alpha"}


@pytest.mark.parametrize("place", ["held_out", "judges"])
@pytest.mark.parametrize("change", [{"name": "beta"}, {"id": "models/beta"}, {}])
def test_what_trains_cannot_judge(place: str, change: dict[str, str]) -> None:
    """Neither under another name, nor as another model of the same name."""
    rewards = yaml.safe_dump({"train": [ALPHA], "held_out": [], "judges": [], place: [{**ALPHA, **change}]})
    message = mistake(overrides=[f"rewards={rewards}"])
    assert "held" in message and ("alpha" in message or "beta" in message)


def test_separate_rewards_pass_and_weights_of_zero_do_not() -> None:
    held_out = {**ALPHA, "name": "beta", "id": "models/beta"}
    assert load_settings(overrides=[f"rewards={yaml.safe_dump({'train': [ALPHA], 'held_out': [held_out]})}"])
    assert "weight 0" in mistake(overrides=[f"rewards={yaml.safe_dump({'train': [{**ALPHA, 'weight': 0}]})}"])


# --------------------------------------------------------------------------------------------------- fingerprints


def leaves(
    tree: Any, path: tuple[str | int, ...] = (), runtime: bool = False
) -> list[tuple[tuple[str | int, ...], Any, bool]]:
    """Every setting: where it is, its field, and whether it is marked runtime."""
    found = []
    for name, field in type(tree).model_fields.items():
        value, here = getattr(tree, name), (*path, name)
        marked = runtime or field.json_schema_extra == RUNTIME
        if isinstance(value, Tree):
            found += leaves(value, here, marked)
        elif isinstance(value, list) and value and isinstance(value[0], Tree):
            for i, item in enumerate(value):
                found += leaves(item, (*here, i), marked)
        else:
            found.append((here, field, marked))
    return found


def changed(data: dict[str, Any], path: tuple[str | int, ...], field: Any) -> Settings:
    """The same settings with another valid value at one place."""
    data = copy.deepcopy(data)
    holder: Any = data
    for part in path[:-1]:
        holder = holder[part]
    old = holder[path[-1]]
    literals = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    inner = [a for a in typing.get_args(field.annotation) if typing.get_origin(a) is typing.Literal]
    literals = (*literals, *([word] for choice in inner for word in typing.get_args(choice)))
    numbers = [not old] if isinstance(old, bool) else [old + 1, old / 2] if isinstance(old, int | float) else []
    others = ["x", [2, 3], {"pick_alpha": 0.5}, {"id": "x"}, {"vae": {"id": "x"}}, "latin-1", ["nfkc"], {"kind": 5}]
    others += [[{"path": "x.txt"}], [{"name": "x", "id": "x:y"}]]
    for candidate in [*literals, *numbers, 3, 500, 0.25, 0.75, f"{old}x", *others]:
        if candidate == old:
            continue
        holder[path[-1]] = candidate
        try:
            return Settings.model_validate(data)
        except ValueError:
            continue
    raise AssertionError(f"found no other value for {path}")


BASE = load_settings()
LEAVES = leaves(BASE)


@pytest.mark.parametrize(("path", "field", "runtime"), LEAVES, ids=[".".join(map(str, leaf[0])) for leaf in LEAVES])
def test_every_setting_but_the_runtime_ones_changes_the_fingerprint(
    path: tuple[str | int, ...], field: Any, runtime: bool
) -> None:
    other = changed(BASE.model_dump(), path, field)
    assert other != BASE
    before, after = (fingerprint("train", 1, s.fingerprinted(), {}) for s in (BASE, other))
    assert (before == after) == runtime


@pytest.mark.parametrize("name", ["candidates", "pictures", "value_lr"])
def test_what_a_value_is_learned_by_changes_the_fingerprint_where_one_is_learned(name: str) -> None:
    def found(*sets: str) -> str:
        return canonical_json(load_settings(overrides=list(sets)).train.fingerprinted())

    other = f"train.{name}=3"
    assert found("train.predictor=selected") != found("train.predictor=selected", other)
    assert found("train.predictor=pahi") == found("train.predictor=pahi", other)
    by_value = ["train.predictor=pahi", "train.estimator=value"]
    assert (found(*by_value) == found(*by_value, other)) == (name == "candidates"), "only selected chooses"


CALLS = ("timeout", "retries", "batch_size")  # how a callable is called


def test_runtime_settings_are_few_and_known() -> None:
    roles = {role: len(getattr(BASE.rewards, role)) for role in ("train", "held_out", "judges")}
    calls = {f"rewards.{role}.{i}.{name}" for role, count in roles.items() for i in range(count) for name in CALLS}
    assert {".".join(map(str, path)) for path, _, runtime in LEAVES if runtime} == {
        "root",
        "ingest.max_expansion",
        "device",
        "threads",
        "train.accumulate",
        "train.devices",
        "train.save_every",
        "train.tensorboard",
        "generator.checkpointing",
        "generator.vae_slicing",
        "generator.channels_last",
        "generator.compile",
        "generate.max_bad_fraction",
        "generate.encoders",
        "generate.workers",
        *calls,
    }


@pytest.mark.parametrize("spelling", ["1", "1.0", "1e0", "0x1", "1.00"])
def test_one_value_has_one_fingerprint(spelling: str) -> None:
    settings = load_settings(overrides=[f"train.clip={spelling}"])
    assert canonical_json(settings.fingerprinted()) == canonical_json(load_settings().fingerprinted())
