"""A person's own drawings: what becomes of them, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from finetune.data.download import FUTHORC_DIR
from finetune.data.folder import read_folder
from finetune.data.runes import RESIZES, open_folder, open_omniglot, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.errors import UserError

BITMAPS = draw_rune("thorn", 4, 7)  # (4, 105, 105) uint8, 1 = ink


def paper(bitmap: torch.Tensor, size: int = 105) -> Image.Image:
    """Black strokes on white, grey at their edges where the size is another."""
    image = Image.fromarray(((1 - bitmap) * 255).numpy())
    return image.resize((size, size), Image.Resampling.BICUBIC) if size != 105 else image


Change = Callable[[Image.Image], Image.Image]


def save(directory: Path, change: Change = lambda image: image, size: int = 105) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for i, bitmap in enumerate(BITMAPS):
        change(paper(bitmap, size)).save(directory / f"{i}.png")
    return directory


def refused(directory: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_folder(directory)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# Names


def test_folders_are_runes(tmp_path: Path) -> None:
    for name in ("sun", "full moon"):
        save(tmp_path / name)
    save(tmp_path / ".hidden")
    (tmp_path / "notes.txt").write_text("no drawing")
    (tmp_path / "sun" / "._0.png").write_bytes(b"what a Mac leaves beside a file")
    (tmp_path / "sun" / "0.png").rename(tmp_path / "sun" / "0.PNG")
    source = open_folder(tmp_path)
    assert source.name == "drawings"
    assert source.runes == ("full_moon", "sun")
    assert all(torch.equal(bitmaps, BITMAPS) for bitmaps in source.bitmaps.values())
    split = source.split("sun", n_train=3)
    assert (split.train.shape, split.test.shape) == ((3, 1, 28, 28), (1, 1, 28, 28))


def test_a_folder_of_drawings_is_one_rune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "sun")
    assert list(read_folder(tmp_path / "sun")) == ["sun"]
    monkeypatch.chdir(tmp_path / "sun")
    assert list(read_folder(Path())) == ["sun"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(read_folder(Path("~/sun"))) == ["sun"]


def test_two_folders_of_one_name_are_told(tmp_path: Path) -> None:
    for name in ("a b", "a_b"):
        save(tmp_path / name)
    refused(tmp_path, str(tmp_path / "a_b"), "another folder of rune a_b", "rename")


# Pixels


def test_a_copy_of_omniglot_is_omniglot(tmp_path: Path) -> None:
    """Bitmaps in black on white become what they are there, and so does each resize."""
    for directory in (tmp_path / "mine", tmp_path / FUTHORC_DIR):
        save(directory / "character01", lambda image: image.convert("1"))
    ours, omniglot = open_folder(tmp_path / "mine"), open_omniglot(tmp_path)
    assert ours.digest == omniglot.digest
    for resize in RESIZES:
        drawings = ours.drawings("character01", resize)
        assert torch.equal(drawings, omniglot.drawings("character01", resize))


def test_real_omniglot_as_a_folder_is_omniglot(real_data: Path) -> None:
    assert open_folder(real_data / FUTHORC_DIR).digest == open_omniglot(real_data).digest


def clear(image: Image.Image) -> Image.Image:
    """Black ink on nothing, whose hidden colour is black too."""
    black = Image.new("L", image.size, 0)
    return Image.merge("LA", (black, image.point(lambda level: 255 - level)))


def deep(image: Image.Image) -> Image.Image:
    """Sixteen bits."""
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.convert("1"),
        lambda image: image.convert("RGB"),
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("P"),
        lambda image: image.point(lambda level: 255 - level),
        lambda image: image.point(lambda level: 255 - level).convert("1"),
        lambda image: image.point(lambda level: 120 + level // 2),  # pencil
        clear,
        deep,
    ],
)
def test_other_encodings_are_the_same_drawing(tmp_path: Path, change: Change) -> None:
    assert torch.equal(read_folder(save(tmp_path / "sun", change))["sun"], BITMAPS)


@pytest.mark.parametrize("size", [64, 210, 400])
def test_other_sizes_become_bitmaps(tmp_path: Path, size: int) -> None:
    bitmaps = read_folder(save(tmp_path / "sun", size=size))["sun"]
    assert bitmaps.shape == BITMAPS.shape and bitmaps.dtype == torch.uint8
    assert np.unique(bitmaps).tolist() == [0, 1]
    union = (bitmaps | BITMAPS).float().sum()
    assert (bitmaps & BITMAPS).float().sum() / union > (0.95 if size > 105 else 0.85)


def test_thin_lines_of_large_drawings_stay_whole(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    for i in range(2):
        large = np.full((1000, 1000), 255, np.uint8)
        large[100:900, 500 + i] = 0
        Image.fromarray(large).save(tmp_path / "line" / f"{i}.png")
    bitmaps = read_folder(tmp_path / "line")["line"]
    assert (bitmaps[:, 15:90].sum(2) > 0).all(), "every row between its ends has ink"


@pytest.mark.parametrize("is_inverted", [False, True])
def test_images_of_networks_stay_as_they_are(tmp_path: Path, is_inverted: bool) -> None:
    images = (resize_bitmaps(BITMAPS, "bilinear") * 255).round().to(torch.uint8)[:, 0]
    (tmp_path / "sun").mkdir()
    for i, image in enumerate(images):
        stored = 255 - image if is_inverted else image
        Image.fromarray(stored.numpy()).save(tmp_path / "sun" / f"{i}.png")
    source = open_folder(tmp_path / "sun")
    assert torch.equal(source.bitmaps["sun"], images)
    for resize in RESIZES:
        assert torch.equal(source.drawings("sun", resize), images[:, None].float() / 255)
    with pytest.raises(UserError, match="28x28, and here bitmaps are resized; give them in 105"):
        source.check_bitmaps()


@settings(max_examples=60)
@given(
    size=st.integers(28, 130),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.02, 0.4),
    ink=st.integers(70, 255),
    is_light=st.booleans(),
)
def test_any_strokes_become_ink_of_some_pixels(
    size: int,
    seed: int,
    share: float,
    ink: int,
    is_light: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever is drawn, there is ink and more paper than ink, or one line says why not."""
    rng = np.random.default_rng(seed)
    directory = tmp_path_factory.mktemp("any")
    for i in range(2):
        strokes: NDArray[np.uint8] = np.zeros((size, size), np.uint8)
        strokes[: max(2, int(share * size)), :] = ink
        strokes[:, rng.integers(0, size)] = ink
        Image.fromarray(strokes if is_light else 255 - strokes).save(directory / f"{i}.png")
    try:
        (drawings,) = read_folder(directory).values()
    except UserError as error:
        assert str(directory) in str(error)
        return
    assert drawings.shape == ((2, 28, 28) if size == 28 else (2, 105, 105))
    mean = (drawings.float() / drawings.max()).mean()
    assert 0 < mean < 0.5


# Refusing


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "none", str(tmp_path / "none"), "no such folder", "--drawings")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", str(tmp_path / "file"), "no such folder")


def test_a_folder_without_drawings_is_told(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    refused(tmp_path, str(tmp_path), "holds no drawings", "PNG files")
    save(tmp_path / "sun")
    (tmp_path / "moon").mkdir()
    refused(tmp_path, str(tmp_path / "moon"), "0 drawings", "two or more")


def test_one_drawing_is_told(tmp_path: Path) -> None:
    save(tmp_path / "sun")
    for path in sorted((tmp_path / "sun").iterdir())[1:]:
        path.unlink()
    refused(tmp_path, str(tmp_path / "sun"), "1 drawing ", "two or more")


def test_folders_and_drawings_are_told(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path / "sun")
    refused(tmp_path, str(tmp_path), "both folders and drawings", "0.png")


@pytest.mark.parametrize("size", [(100, 28), (27, 27), (105, 104)])
def test_a_shape_that_is_no_square_is_told(tmp_path: Path, size: tuple[int, int]) -> None:
    save(tmp_path / "sun")
    path = tmp_path / "sun" / "0.png"
    Image.new("L", size, 255).save(path)
    refused(tmp_path, str(path), f"{size[0]}x{size[1]}", "square", "28x28 or more", "105x105")


def test_drawings_of_two_sizes_are_told(tmp_path: Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b", size=64)
    refused(tmp_path, str(tmp_path / "b" / "0.png"), "64x64", "105x105", "one size")


@pytest.mark.parametrize("levels", [(255, 255), (0, 0), (255, 200), (0, 60)])
def test_blank_drawings_are_told(tmp_path: Path, levels: tuple[int, int]) -> None:
    save(tmp_path / "sun")
    path = tmp_path / "sun" / "2.png"
    back, front = levels
    strokes = np.where(BITMAPS[2].numpy() > 0, front, back).astype(np.uint8)
    Image.fromarray(strokes).save(path)
    refused(tmp_path, str(path), "nearly blank", "black on white")


def test_a_background_that_is_not_even_is_told(tmp_path: Path) -> None:
    save(tmp_path / "sun")
    path = tmp_path / "sun" / "1.png"
    grey = np.linspace(255, 125, 105).astype(np.uint8)
    grey[20:] = np.minimum(grey[20:], 140)
    Image.fromarray(np.repeat(grey[:, None], 105, 1)).save(path)
    refused(tmp_path, str(path), "more ink than paper", "even background")


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    save(tmp_path / "sun")
    path = tmp_path / "sun" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    refused(tmp_path, str(path), "not a whole PNG file", "export it again")
    jpeg = io.BytesIO()
    paper(BITMAPS[0]).save(jpeg, "JPEG")
    path.write_bytes(jpeg.getvalue())
    refused(tmp_path, str(path), "not a whole PNG file")
    path.unlink()
    path.mkdir()
    refused(tmp_path, str(path), "can't be read")
