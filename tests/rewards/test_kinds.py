"""What every kind of reward promises, on a small model of each."""

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from pictures import photo, tensor
from torch import nn
from transformers import CLIPTokenizer

from pahi import models
from pahi.errors import UserError
from pahi.rewards import Reward, load_reward
from pahi.rewards.files import fetch, locate
from pahi.rewards.load import kind_of, reward_hash
from pahi.settings import RewardModel, reward_kinds

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue squares left of a star"]
KINDS = sorted(small.BUILDERS)


@pytest.fixture(scope="module")
def folders(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from randomised import randomise

    found = {}
    for kind, build in small.BUILDERS.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        build(found[kind], tokenizer, randomise)
        if kind not in ("aesthetic", "callable"):
            tokenizer.save_pretrained(found[kind])
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reward(kind: str, folders: dict[str, Path]) -> Reward:
    return load_reward(small.settings(kind, folders[kind]), CPU)


def test_every_kind_is_tested_here() -> None:
    assert reward_kinds() == KINDS


def test_it_describes_itself(kind: str, reward: Reward, folders: dict[str, Path]) -> None:
    described = kind_of(small.settings(kind, folders[kind]))
    assert reward.name == f"small_{kind}" and len(reward.hash) == 64
    assert reward.hash == reward_hash(small.settings(kind, folders[kind])), "the fingerprint and the model must agree"
    assert reward.differentiable == described.differentiable
    assert described.license != "unknown" or kind == "callable"


def test_scores_are_one_number_a_picture_with_its_gradient(reward: Reward) -> None:
    images = torch.stack([tensor(photo(40, 40, seed)) for seed in range(2)]).requires_grad_()
    got = reward.score(images, reward.prepare(PROMPTS), PROMPTS)
    assert got.shape == (2,) and got.dtype == torch.float32 and got.isfinite().all() and got[0] != got[1]
    assert got.requires_grad == reward.differentiable
    if reward.differentiable:
        (gradient,) = torch.autograd.grad(got[0], images)
        assert gradient[0].abs().sum() > 0 and not gradient[1].any(), "a score depends on its own picture alone"


def test_nothing_of_it_learns(reward: Reward) -> None:
    parts = [part for part in vars(reward).values() if isinstance(part, nn.Module)]
    assert all(not p.requires_grad for part in parts for p in part.parameters())
    assert not any(part.training for part in parts)


def test_a_batch_scores_as_its_rows_do(reward: Reward) -> None:
    images = torch.stack([tensor(photo(30, 50, seed)) for seed in range(2)])
    prepared = reward.prepare(PROMPTS)
    rows = [
        reward.score(images[i : i + 1], {n: t[i : i + 1] for n, t in prepared.items()}, PROMPTS[i : i + 1])
        for i in range(2)
    ]
    assert torch.allclose(reward.score(images, prepared, PROMPTS), torch.cat(rows), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (2048, 2048), (2048, 600), (33, 47), (1, 7)])
def test_pictures_of_any_shape_are_scored(reward: Reward, shape: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = reward.score(images, reward.prepare(PROMPTS[:1]), PROMPTS[:1])
    assert got.shape == (1,) and got.isfinite().all()
    if reward.differentiable:
        (gradient,) = torch.autograd.grad(got.sum(), images)
        assert gradient.shape == images.shape and gradient.isfinite().all()
        assert gradient.any() or min(shape) == 1  # the middle pixel of a black line may matter to none of the patches


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_transparent_pictures_score_as_pil_converts_them(reward: Reward, mode: str) -> None:
    picture = photo(40, 30).convert(mode)
    if mode.endswith("A"):
        picture.putalpha(120)
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(40, 30, -1) / 255
    prepared = reward.prepare(PROMPTS[:1])
    got = reward.score(values.permute(2, 0, 1)[None], prepared, PROMPTS[:1])
    expected = reward.score(tensor(picture.convert("RGB"))[None], prepared, PROMPTS[:1])
    assert torch.allclose(got, expected, atol=1e-5)


def test_values_outside_of_the_range_are_clamped(reward: Reward) -> None:
    images = 3 * torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)) - 1
    prepared = reward.prepare(PROMPTS[:1])
    inside = reward.score(images.clamp(0, 1), prepared, PROMPTS[:1])
    assert torch.allclose(reward.score(images, prepared, PROMPTS[:1]), inside, atol=1e-5)


def test_cut_prompts_are_counted(kind: str, reward: Reward) -> None:
    prepared = reward.prepare(["a red circle", "word " * 200])
    if "truncated" in prepared:
        assert prepared["truncated"].tolist() == [0, 1]
        # Padded to one length whatever stands beside it: sorting prompts by length would save nothing.
        alone = reward.prepare(["a red circle"])
        assert {n: t.shape[1:] for n, t in alone.items()} == {n: t.shape[1:] for n, t in prepared.items()}
    else:
        assert prepared == {}, f"{kind} reads text, and does not say when it cuts it"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrower_type_changes_little(kind: str, reward: Reward, folders: dict[str, Path], dtype: str) -> None:
    narrow = load_reward(small.settings(kind, folders[kind]).model_copy(update={"dtype": dtype}), CPU)
    images = torch.stack([tensor(photo(40, 40, seed)) for seed in range(2)])
    wide = reward.score(images, reward.prepare(PROMPTS), PROMPTS)
    got = narrow.score(images, narrow.prepare(PROMPTS), PROMPTS)
    assert got.dtype == torch.float32
    assert (got - wide).abs().max() < 0.1 * max(1.0, float(wide.abs().max()))


# ------------------------------------------------------------------------------------------------------ broken files

FILES = [k for k in KINDS if k != "callable"]


def weights_of(folder: Path) -> Path:
    return next(p for p in sorted(folder.iterdir()) if p.suffix in (".pt", ".pth", ".safetensors"))


@pytest.fixture(params=FILES)
def copy(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> tuple[str, Path]:
    shutil.copytree(folders[request.param], tmp_path / "copy")
    return request.param, tmp_path / "copy"


def refused(kind: str, folder: Path) -> str:
    models.files.cache_clear()
    with pytest.raises(UserError) as error:
        load_reward(small.settings(kind, folder), CPU)
    message = str(error.value)
    assert "\n" not in message and f"small_{kind}" in message
    return message


def test_a_torn_file_is_one_line(copy: tuple[str, Path]) -> None:
    kind, folder = copy
    weights = weights_of(folder)
    weights.write_bytes(weights.read_bytes()[:3000])
    refused(kind, folder)


def test_an_empty_folder_is_one_line(copy: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(copy[0], tmp_path / "empty")


def test_a_changed_weight_is_another_reward(copy: tuple[str, Path], folders: dict[str, Path]) -> None:
    kind, folder = copy
    weights, before = weights_of(folder), reward_hash(small.settings(kind, folders[kind]))
    assert reward_hash(small.settings(kind, folder)) == before, "wherever it lies"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    models.files.cache_clear()
    assert reward_hash(small.settings(kind, folder)) != before


class Hostile:
    """Pickled, it is a call that makes a file: what an attacker would put in place of a harmless command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["aesthetic", "hpsv2", "image_reward"])
@pytest.mark.parametrize("form", ["torch", "plain"])
def test_a_pickle_that_would_run_code_is_refused(
    kind: str, form: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    trace, folder = tmp_path / "it-ran", tmp_path / "hostile"
    shutil.copytree(folders[kind], folder)
    name = "ImageReward.pt" if kind == "image_reward" else weights_of(folder).name
    if kind == "aesthetic":
        name = next(p.name for p in folder.iterdir() if p.suffix == ".pth")
    payload: dict[str, object] = {"state_dict": {"weight": torch.zeros(2)}, "extra": Hostile(trace)}
    if form == "torch":
        torch.save(payload, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(payload))
    # The recipe is no dud: a reader without weights_only runs it.
    buffer = io.BytesIO((folder / name).read_bytes())
    torch.load(buffer, weights_only=False) if form == "torch" else pickle.load(buffer)
    assert trace.exists()
    trace.unlink()
    refused(kind, folder)
    assert not trace.exists()


def test_a_missing_tokenizer_is_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers builds an empty tokenizer where a folder has none, and would score every prompt alike."""
    for kind in ("pickscore", "clip_score", "image_reward", "hpsv2"):
        folder = tmp_path / kind
        shutil.copytree(folders[kind], folder, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*"))
        refused(kind, folder)


# ------------------------------------------------------------------------------------------------------ documentation

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def test_the_page_lists_every_kind() -> None:
    for kind in KINDS:
        assert f"| `{kind}` |" in PAGE


def test_the_pages_example_is_a_reward(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], names)
    (tmp_path / "factor.json").write_text('{"factor": 2.0}')
    model = RewardModel.model_validate({"name": "mine", "kind": "callable", "id": str(tmp_path)})
    found = locate(model, names["KIND"], fetch)
    reward = names["KIND"].load(model, found, CPU)
    images = torch.stack([tensor(photo(9, 9)), torch.full((3, 9, 9), 0.5)]).requires_grad_()
    got = reward.score(images, reward.prepare(PROMPTS), PROMPTS)
    assert got[0] > got[1] == 0 and reward.hash == found.hash
    assert torch.autograd.grad(got[0], images)[0][0].any()
