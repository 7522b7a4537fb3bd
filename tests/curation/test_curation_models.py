"""Models that look at pictures: transformers' own, made small, and functions."""

from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
)

from pahi.curation.models import digest, load_classifier, load_embedder
from pahi.errors import PahiError, UserError
from pahi.settings import Embedder, PictureClassifier

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL |= {"image_size": 32, "patch_size": 8}
PICTURES = [Image.fromarray(made_up.picture(i, size)) for i, size in enumerate((32, 48, 64))]
PROCESSOR = """{"image_processor_type": "ViTImageProcessor", "do_normalize": true, "do_rescale": true,
"do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
"rescale_factor": 0.00392156862745098, "size": {"height": 32, "width": 32}}"""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "normal", 1: "NSFW", 2: "violence"}
    model = ViTForImageClassification(ViTConfig(**SMALL, id2label=labels, label2id={v: k for k, v in labels.items()}))
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PROCESSOR)
    return folder


def by_hand(folder: Path) -> np.ndarray:
    """Probabilities by the formulas: resize, scale to [-1, 1], softmax."""
    pixels = [np.asarray(p.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32) / 127.5 - 1 for p in PICTURES]
    with torch.no_grad():
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return ViTForImageClassification.from_pretrained(folder).eval()(batch).logits.softmax(-1).numpy()


@pytest.mark.parametrize(("labels", "columns"), [(["nsfw"], [1]), (["NSFW", "violence"], [1, 2])])
def test_a_published_classifiers_labels_are_added(classifier: Path, labels: list[str], columns: list[int]) -> None:
    got = load_classifier(PictureClassifier(id=str(classifier), labels=labels), CPU)(PICTURES)
    np.testing.assert_allclose(got, by_hand(classifier)[:, columns].sum(1), atol=0.02)
    assert np.ptp(got) > 0.02, "it tells pictures apart"


def test_a_label_that_it_does_not_know_is_said(classifier: Path) -> None:
    with pytest.raises(UserError, match=r"knows no 'porn', but normal, nsfw, violence"):
        load_classifier(PictureClassifier(id=str(classifier), labels=["porn"]), CPU)


def test_a_vision_models_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, projection_dim=12)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(PROCESSOR)
    got = load_embedder(Embedder(id=str(tmp_path)), CPU)(PICTURES)
    assert got.shape[0] == 3 and np.isfinite(got).all() and np.abs(got[0] - got[1]).max() > 1e-3
    alone = load_embedder(Embedder(id=str(tmp_path)), CPU)(PICTURES[1:2])
    np.testing.assert_allclose(alone[0], got[1], atol=1e-5)


def test_the_digest_is_of_the_files_and_not_of_their_place(classifier: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in classifier.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert digest(PictureClassifier(id=str(moved))) == digest(PictureClassifier(id=str(classifier)))
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    other = tmp_path / "other"
    moved.rename(other)
    (other / "model.safetensors").write_bytes(bytes(data))
    assert digest(PictureClassifier(id=str(other))) != digest(PictureClassifier(id=str(classifier)))
    assert digest(PictureClassifier(id="looking:reddish")) != digest(PictureClassifier(id="looking:wrong"))


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ("looking:absent", UserError, "cannot import"),
        ("nowhere.at.all:f", UserError, "cannot import"),
        ("looking:np", UserError, "is no function"),
        ("looking:wrong", UserError, "one number for each of 3 pictures"),
        ("looking:embed", UserError, "one number for each of 3 pictures"),
        ("looking:failing", PahiError, "ConnectionError: the service is away"),
    ],
)
def test_a_function_that_does_not_do_is_said_in_one_line(target: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        load_classifier(PictureClassifier(id=target), CPU)(PICTURES)
    assert "\n" not in str(caught.value)
