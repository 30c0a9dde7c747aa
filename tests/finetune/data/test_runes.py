"""Runes and digits: found, read, refused, downloaded, resized and split."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data import download as fetch
from finetune.data import runes as data
from finetune.data.download import FUTHORC_DIR, Download
from finetune.data.mnist import RAW_DIR
from finetune.data.runes import (
    RESIZES,
    DrawingDataset,
    Resize,
    RuneSource,
    data_directory,
    find_mnist,
    open_drawn,
    open_omniglot,
    open_source,
    resize_bitmaps,
    split_drawings,
)
from finetune.errors import UserError

RUNE_NAMES = ("character01", "character07")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; nothing is named, and no test reaches the internet."""
    monkeypatch.delenv("RUNES_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    directory = tmp_path / "cache"
    monkeypatch.setattr(data, "cache_directory", lambda: directory)
    monkeypatch.setattr(fetch, "RETRIES", 0)
    for name, source in (("fetch_omniglot", fetch.OMNIGLOT), ("fetch_mnist", fetch.MNIST)):
        nowhere = Download(source.title, "http://127.0.0.1:9/", source.md5)
        monkeypatch.setattr(data, name, partial(getattr(fetch, name), source=nowhere))
    return directory


def bitmap(seed: int) -> np.ndarray:
    """A thick random stroke on a blank sheet, (105, 105) bool, True = ink."""
    rng = np.random.default_rng(seed)
    ink = np.zeros((105, 105), bool)
    x, y = rng.integers(10, 50, 2)
    ink[y : y + 40, x : x + 5] = True
    ink[y + 20 : y + 24, x : x + 30] = True
    return ink


def save_png(path: Path, ink: np.ndarray) -> None:
    Image.fromarray(~ink).save(path)


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A directory in torchvision's layout with two made-up runes."""
    directory = tmp_path / "named"
    for i, rune in enumerate(RUNE_NAMES):
        (directory / FUTHORC_DIR / rune).mkdir(parents=True)
        for k in range(20):
            path = directory / FUTHORC_DIR / rune / f"029{i}_{k + 1:02d}.png"
            save_png(path, bitmap(100 * i + k))
    return directory


@pytest.fixture
def drawing(named: Path) -> Path:
    """The third drawing of the first rune, to be broken."""
    return named / FUTHORC_DIR / RUNE_NAMES[0] / "0290_03.png"


def assert_refused(directory: Path | None, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        open_omniglot(directory)
    assert_helpful(caught.value, *words)


def assert_helpful(error: UserError, *words: str) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


# Reading


def test_reads_ink_as_one_in_the_order_of_the_names(named: Path) -> None:
    source = open_omniglot(named)
    assert source.name == "omniglot"
    assert source.runes == RUNE_NAMES
    for i, rune in enumerate(source.runes):
        expected = np.stack([bitmap(100 * i + k) for k in range(20)])
        assert source.bitmaps[rune].dtype == torch.uint8
        assert np.array_equal(source.bitmaps[rune].numpy(), expected)


def test_other_encodings_of_a_drawing_are_the_same_drawing(named: Path, drawing: Path) -> None:
    digest = open_omniglot(named).digest
    Image.open(drawing).convert("RGB").save(drawing)
    drawing.with_name("._0290_03.png").write_bytes(b"what a Mac leaves beside a file")
    assert open_omniglot(named).digest == digest


def test_digest_is_of_the_pixels_and_not_of_the_place(named: Path, drawing: Path) -> None:
    digest = open_omniglot(named).digest
    assert len(digest) == 64
    moved = named.rename(named.with_name("moved"))
    assert open_omniglot(moved).digest == digest

    ink = bitmap(2)
    ink[0, 0] = True
    save_png(moved / drawing.relative_to(named), ink)
    assert open_omniglot(moved).digest != digest


def test_digest_sees_the_names_but_not_their_order() -> None:
    a, b = torch.zeros(20, 105, 105, dtype=torch.uint8), torch.ones(20, 105, 105, dtype=torch.uint8)
    digest = RuneSource("drawn", {"a": a, "b": b}).digest
    assert RuneSource("drawn", {"b": b, "a": a}).digest == digest
    assert RuneSource("drawn", {"a": b, "b": a}).digest != digest


def test_unknown_rune_is_told_with_those_there_are(named: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_omniglot(named).drawings("character30")
    assert_helpful(caught.value, "character30", "character01, character07")


def test_drawn_runes_need_no_data() -> None:
    source = open_drawn(seed=1)
    assert source.name == "drawn"
    assert len(source.runes) > 0
    assert source.drawings(source.runes[0]).shape == (20, 1, 28, 28)
    assert {tuple(b.shape) for b in source.bitmaps.values()} == {(20, 105, 105)}


def test_real_omniglot(real_data: Path) -> None:
    source = open_omniglot(real_data)
    assert len(source.runes) >= 20
    for rune in source.runes:
        bitmaps = source.bitmaps[rune]
        assert bitmaps.shape == (20, 105, 105)
        assert np.unique(bitmaps).tolist() == [0, 1]
        assert 0.03 < bitmaps.float().mean() < 0.2, "thin strokes on an empty sheet"
        assert source.drawings(rune).shape == (20, 1, 28, 28)


# Other alphabets and numbers


@pytest.fixture
def alphabets(named: Path) -> Path:
    """The made-up Futhorc, and two alphabets of three and of two drawings a character."""
    for place, n in (("images_background/Greek", 3), ("images_evaluation/Angelic", 2)):
        for character in ("character01", "character02", "character03"):
            directory = named / "omniglot-py" / place / character
            directory.mkdir(parents=True)
            for k in range(n):
                save_png(directory / f"{k}.png", bitmap(1000 + k))
    (named / "omniglot-py" / "images_background" / ".cache").mkdir()
    return named


def test_an_alphabet_of_either_part(alphabets: Path) -> None:
    for alphabet, n in (("Greek", 3), ("Angelic", 2)):
        source = open_omniglot(alphabets, alphabet=alphabet)
        assert source.name == f"omniglot {alphabet}"
        assert source.runes == ("character01", "character02", "character03")
        assert source.drawings("character01").shape == (n, 1, 28, 28)
        split = source.split("character01")
        assert (len(split.train), len(split.test)) == (1, n - 1)
    futhorc = open_omniglot(alphabets)
    assert (futhorc.name, futhorc.runes) == ("omniglot", RUNE_NAMES)
    assert open_source("omniglot", alphabets).digest == futhorc.digest
    greek = open_source("omniglot", alphabets, alphabet="Greek")
    assert greek.digest == open_omniglot(alphabets, alphabet="Greek").digest


@pytest.mark.parametrize("alphabet", ["Klingon", "../omniglot-py", ".cache", "Greek/character01"])
def test_an_unknown_alphabet_is_told_with_those_there_are(alphabets: Path, alphabet: str) -> None:
    with pytest.raises(UserError) as caught:
        open_omniglot(alphabets, alphabet=alphabet)
    known = "Angelic, Anglo-Saxon_Futhorc, Greek"
    assert_helpful(caught.value, repr(alphabet), str(alphabets / "omniglot-py"), known)


def test_an_alphabet_where_there_is_no_omniglot(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError) as caught:
        open_omniglot(empty, alphabet="Greek")
    path = empty / "omniglot-py/images_background/Greek"
    assert_helpful(caught.value, str(path), "no such directory", "--data")


def test_other_alphabets_are_not_downloaded(site: Site, alphabets: Path, cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_omniglot(alphabet="Greek")
    assert_helpful(caught.value, "'Greek' is not downloaded", "--data", "RUNES_DATA")
    assert site.asked == []
    cache.mkdir()
    (alphabets / "omniglot-py").rename(cache / "omniglot-py")
    assert open_omniglot(alphabet="Greek").name == "omniglot Greek", "who puts it there has it"
    with pytest.raises(UserError) as caught:
        open_omniglot(alphabet="Klingon")
    assert_helpful(caught.value, "Angelic, Anglo-Saxon_Futhorc, Greek is there")


def test_other_numbers_of_drawings(named: Path, drawing: Path) -> None:
    drawing.unlink()
    source = open_omniglot(named)
    assert [len(source.bitmaps[rune]) for rune in RUNE_NAMES] == [19, 20]
    split = source.split(RUNE_NAMES[0])
    assert (len(split.train), len(split.test)) == (9, 10)


def test_a_real_alphabet_is_the_default(real_data: Path) -> None:
    source = open_omniglot(real_data, alphabet="Anglo-Saxon_Futhorc")
    assert source.name == "omniglot"
    assert source.digest == open_omniglot(real_data).digest
    split = source.split(source.runes[0], n_train=15)
    assert (len(split.train), len(split.test)) == (15, 5)
    with pytest.raises(UserError, match=r"has no alphabet 'Klingon'; write one of .*Futhorc"):
        open_omniglot(real_data, alphabet="Klingon")


@pytest.mark.parametrize(
    "asked",
    [
        {"name": "drawn", "alphabet": "Greek"},
        {"name": "drawn", "drawings": Path("mine")},
        {"name": "omniglot", "alphabet": "Greek", "drawings": Path("mine")},
    ],
)
def test_two_kinds_of_drawings_at_once_are_told(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="name different drawings; leave one out"):
        open_source(data=None, **asked)


# Refusing


def test_missing_runes_are_told_and_nothing_is_put_there(tmp_path: Path, cache: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(empty, str(empty / FUTHORC_DIR), "no such directory", "--data")
    assert list(empty.iterdir()) == []
    assert not cache.exists()


def test_futhorc_without_characters_is_told(tmp_path: Path) -> None:
    (tmp_path / FUTHORC_DIR).mkdir(parents=True)
    assert_refused(tmp_path, str(tmp_path / FUTHORC_DIR), "characterNN")


def test_a_rune_of_one_drawing_is_told(named: Path, drawing: Path) -> None:
    for path in sorted(drawing.parent.iterdir())[1:]:
        path.unlink()
    assert_refused(named, str(drawing.parent), "1 drawing ", "2 or more", "copy it again")


def test_empty_character_is_told(named: Path) -> None:
    empty = named / FUTHORC_DIR / "character09"
    empty.mkdir()
    assert_refused(named, str(empty), "0 drawings")


def test_wrong_size_is_told(named: Path, drawing: Path) -> None:
    save_png(drawing, bitmap(2)[:28, :100])
    assert_refused(named, str(drawing), "100x28", "105x105")


@pytest.mark.parametrize("kind", ["blank", "inverted", "grey"])
def test_what_is_no_drawing_is_told(named: Path, drawing: Path, kind: str) -> None:
    ink = bitmap(2)
    paper, stroke = {"blank": (255, 255), "inverted": (0, 255), "grey": (255, 90)}[kind]
    Image.fromarray(np.where(ink, stroke, paper).astype(np.uint8)).save(drawing)
    assert_refused(named, str(drawing), "black on white")


def test_unreadable_drawing_is_told(named: Path, drawing: Path) -> None:
    drawing.unlink()
    drawing.mkdir()
    assert_refused(named, str(drawing), "can't be read")


@settings(max_examples=200)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_damage_is_told_or_harmless(
    position: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A flipped byte, or with no bit to flip a file cut there, never gives other pixels."""
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    save_png(path, bitmap(0))
    raw = bytearray(path.read_bytes())
    at = int(position * len(raw))
    raw[at] ^= flip
    path.write_bytes(raw if flip else raw[:at])
    try:
        pixels = data._read_bitmap(path, "copy it again")
    except UserError as error:
        assert_helpful(error, f"{path} is not", "copy it again")
    else:
        assert np.array_equal(pixels.numpy(), bitmap(0))


# Naming a directory


def test_option_beats_variable_beats_cache(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_directory(None) is None
    monkeypatch.setenv("RUNES_DATA", "")
    assert data_directory(None) is None, "an empty variable names nothing"
    monkeypatch.setenv("RUNES_DATA", str(named))
    assert data_directory(None) == named
    assert data_directory(tmp_path) == tmp_path
    assert open_omniglot().runes == RUNE_NAMES


def test_home_in_the_variable(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(named.parent))
    monkeypatch.setenv("RUNES_DATA", "~/named")
    assert data_directory(None) == named


def test_named_directory_that_is_not_there(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNES_DATA", str(named))
    assert_refused(tmp_path / "typo", str(tmp_path / "typo"), "--data", "no directory")
    monkeypatch.setenv("RUNES_DATA", str(tmp_path / "typo"))
    assert_refused(None, str(tmp_path / "typo"), "RUNES_DATA", "no directory")


def test_mnist_in_a_named_directory(named: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_mnist(named)
    first = named / RAW_DIR / "train-images-idx3-ubyte"
    assert_helpful(caught.value, str(first), "no such file", "--data")
    (named / RAW_DIR).mkdir(parents=True)
    for name in fetch.MNIST.md5:
        (named / RAW_DIR / name.removesuffix(".gz")).touch()
    assert find_mnist(named) == named


def test_empty_cache_without_downloads(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_omniglot(download=False)
    assert_helpful(caught.value, str(cache / FUTHORC_DIR), "--data", "RUNES_DATA")
    with pytest.raises(UserError) as caught:
        find_mnist(download=False)
    assert_helpful(caught.value, str(cache / RAW_DIR), "--data", "RUNES_DATA")


# Downloading


class Site:
    """A web site on this machine that serves ``root`` and remembers what it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.cut = False  # end each answer before its last byte
        self.failures_left = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> Callable[..., SimpleHTTPRequestHandler]:
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path[1:])
                body = (site.root / self.path[1:]).read_bytes()
                if site.failures_left:
                    site.failures_left -= 1
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:-1] if site.cut else body)

            def log_message(self, *_: object) -> None:
                pass

        return partial(Handler, directory=str(self.root))


@pytest.fixture
def site(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site with an archive of the made-up runes and four small files as MNIST."""
    root = tmp_path / "site"
    root.mkdir()
    with zipfile.ZipFile(root / "images_background.zip", "w") as packed:
        packed.writestr("images_background/Greek/character01/0001_01.png", b"another alphabet")
        for path in sorted((named / "omniglot-py").rglob("*.png")):
            packed.write(path, path.relative_to(named / "omniglot-py"))
    for name in fetch.MNIST.md5:
        (root / name).write_bytes(name.encode() * 100)
    site = Site(root)
    for name, official in (("fetch_omniglot", fetch.OMNIGLOT), ("fetch_mnist", fetch.MNIST)):
        md5 = {name: hashlib.md5((root / name).read_bytes()).hexdigest() for name in official.md5}
        source = Download(official.title, site.url, md5)
        monkeypatch.setattr(data, name, partial(getattr(fetch, name), source=source))
    yield site
    site.close()


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_runes_are_downloaded_once(site: Site, named: Path, cache: Path) -> None:
    assert open_omniglot().digest == open_omniglot(named).digest
    assert site.asked == ["images_background.zip"]
    assert sorted(files_in(cache)) == sorted((cache / FUTHORC_DIR).glob("*/*.png"))
    assert len(files_in(cache)) == 40, "neither the archive nor other alphabets are kept"
    site.close()
    assert open_omniglot().runes == RUNE_NAMES
    assert site.asked == ["images_background.zip"]


def test_digits_are_downloaded_once(site: Site, cache: Path) -> None:
    assert find_mnist() == cache
    assert sorted(site.asked) == sorted(fetch.MNIST.md5)
    for name in fetch.MNIST.md5:
        assert (cache / RAW_DIR / name).read_bytes() == (site.root / name).read_bytes()
    site.close()
    assert find_mnist() == cache
    assert len(site.asked) == 4


def test_damaged_digits_in_the_cache_are_downloaded_again(site: Site, cache: Path) -> None:
    find_mnist()
    name = "t10k-labels-idx1-ubyte.gz"
    (cache / RAW_DIR / name).write_bytes(b"damage")
    find_mnist()
    assert site.asked[4:] == [name]
    assert (cache / RAW_DIR / name).read_bytes() == (site.root / name).read_bytes()


def test_damaged_rune_in_the_cache_tells_how_to_get_it_again(site: Site, cache: Path) -> None:
    open_omniglot()
    path = cache / FUTHORC_DIR / RUNE_NAMES[0] / "0290_03.png"
    path.write_bytes(path.read_bytes()[:50])
    assert_refused(None, str(path), f"delete {cache / FUTHORC_DIR}")


@pytest.mark.parametrize("fetch_it", [open_omniglot, find_mnist])
def test_wrong_checksum_leaves_nothing(
    site: Site, cache: Path, fetch_it: Callable[[], object]
) -> None:
    for path in site.root.iterdir():
        path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(UserError) as caught:
        fetch_it()
    assert_helpful(caught.value, site.url, "checksum is wrong", "--data", "RUNES_DATA")
    assert files_in(cache) == []


@pytest.mark.parametrize("fetch_it", [open_omniglot, find_mnist])
def test_broken_download_leaves_nothing(
    site: Site, cache: Path, fetch_it: Callable[[], object]
) -> None:
    site.cut = True
    with pytest.raises(UserError) as caught:
        fetch_it()
    assert_helpful(caught.value, site.url, "--data", "RUNES_DATA")
    assert files_in(cache) == []


def test_a_site_that_is_gone(site: Site, cache: Path) -> None:
    site.close()
    layout = f"{FUTHORC_DIR}/characterNN/*.png"
    assert_refused(None, "Omniglot", site.url, "Connection refused", layout, "--data", "RUNES_DATA")
    assert files_in(cache) == []


def test_http_errors_are_told_after_the_retries(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setattr(fetch, "RETRIES", 2)
    site.failures_left = 3
    assert_refused(None, "HTTP 503 Service Unavailable")
    assert files_in(cache) == []
    site.failures_left = 2
    assert open_omniglot().runes == RUNE_NAMES


def test_interrupted_unpacking_leaves_nothing(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = zipfile.ZipFile.extractall

    def interrupted(packed: zipfile.ZipFile, path: str, members: list[str]) -> None:
        unpack(packed, path, members[:5])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_omniglot()
    assert files_in(cache) == []
    assert open_omniglot().runes == RUNE_NAMES


def test_another_process_was_first(
    site: Site, named: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = zipfile.ZipFile.extractall

    def overtaken(packed: zipfile.ZipFile, path: str, members: list[str]) -> None:
        unpack(packed, path, members)
        unpack(packed, cache / "omniglot-py", members)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", overtaken)
    assert open_omniglot().digest == open_omniglot(named).digest
    assert len(files_in(cache)) == 40


def test_cache_that_cannot_be_written(site: Site, cache: Path) -> None:
    cache.write_text("a file in the place of the directory")
    assert_refused(None, str(cache), "can't store", "--data")
    with pytest.raises(UserError, match="can't store"):
        find_mnist()


# Resizing and splitting


@pytest.mark.parametrize("resize", RESIZES)
def test_resize_is_interpolate(resize: Resize) -> None:
    bitmaps = torch.from_numpy(np.stack([bitmap(k) for k in range(4)])).to(torch.uint8)
    images = resize_bitmaps(bitmaps, resize)
    as_documented = {
        "bilinear": {"mode": "bilinear"},
        "antialiased": {"mode": "bilinear", "antialias": True},
        "nearest": {"mode": "nearest"},
    }[resize]
    expected = F.interpolate(bitmaps[:, None].float(), size=(28, 28), **as_documented)  # type: ignore[arg-type]
    assert images.shape == (4, 1, 28, 28) and images.dtype == torch.float32
    assert torch.equal(images, expected)


def test_resizes_differ() -> None:
    bitmaps = torch.from_numpy(bitmap(0)).to(torch.uint8)[None]
    bilinear, antialiased, nearest = (resize_bitmaps(bitmaps, resize) for resize in RESIZES)
    assert not torch.equal(bilinear, antialiased)
    assert not torch.equal(bilinear, nearest)
    assert not torch.equal(antialiased, nearest)
    assert np.unique(nearest).tolist() == [0, 1]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), ink=st.floats(0, 1), resize=st.sampled_from(RESIZES))
def test_images_are_in_the_unit_interval(seed: int, ink: float, resize: Resize) -> None:
    drawn = np.random.default_rng(seed).random((2, 105, 105)) < ink
    images = resize_bitmaps(torch.from_numpy(drawn).to(torch.uint8), resize)
    assert images.min() >= 0 and images.max() <= 1


def test_unknown_resize_is_told_with_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        resize_bitmaps(torch.zeros(1, 105, 105), "bicubic")  # type: ignore[arg-type]
    assert_helpful(caught.value, "'bicubic'", "bilinear, antialiased, nearest")


@given(seed=st.integers(-(2**63), 2**64 - 1))
def test_split_deals_each_drawing_once(seed: int) -> None:
    drawings = torch.arange(20.0)[:, None, None, None].expand(20, 1, 28, 28)
    split = split_drawings(drawings, seed)
    assert split.train.shape == split.test.shape == (10, 1, 28, 28)
    dealt = torch.cat([split.train, split.test])[:, 0, 0, 0]
    assert sorted(dealt.tolist()) == list(range(20))
    assert torch.equal(split_drawings(drawings, seed).train, split.train)


def test_split_is_fixed_by_the_seed() -> None:
    """Figures of different versions are comparable only while this order stands."""
    torch.manual_seed(5)
    assert split_drawings(torch.arange(20), 0).train.tolist() == [4, 5, 13, 19, 7, 14, 3, 6, 9, 17]
    assert len({tuple(split_drawings(torch.arange(20), s).train.tolist()) for s in range(9)}) == 9


@given(n=st.integers(2, 60), seed=st.integers(0, 2**32), share=st.floats(0, 1, exclude_max=True))
def test_any_split_deals_each_drawing_once(n: int, seed: int, share: float) -> None:
    n_train = 1 + int(share * (n - 1))
    split = split_drawings(torch.arange(n), seed, n_train)
    assert (len(split.train), len(split.test)) == (n_train, n - n_train)
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(n))
    half = split_drawings(torch.arange(n), seed)
    assert len(half.train) == n // 2
    shorter = min(n_train, n // 2)  # more drawings to train on never change the first
    assert torch.equal(split.train[:shorter], half.train[:shorter])


@given(seed=st.integers(0, 2**32))
def test_twenty_drawings_are_split_as_they_always_were(seed: int) -> None:
    drawings = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    train, test = drawings[order].chunk(2)
    for n_train in (None, 10):
        split = split_drawings(drawings, seed, n_train)
        assert torch.equal(split.train, train) and torch.equal(split.test, test)


@pytest.mark.parametrize(
    ("n", "n_train", "message"),
    [
        (20, 20, "train is 20, and of 20 drawings .*; write 1 to 19"),
        (20, 0, "train is 0, .*; write 1 to 19"),
        (20, -1, "train is -1, .*; write 1 to 19"),
        (2, 2, "train is 2, .*; write 1$"),
        (1, None, "1 drawings; 2 or more can be split"),
    ],
)
def test_a_split_leaves_drawings_on_both_sides(n: int, n_train: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_drawings(torch.zeros(n, 1, 28, 28), 0, n_train)


def test_a_rune_that_cannot_be_split_is_named() -> None:
    with pytest.raises(UserError, match=r"^thorn: train is 20, "):
        open_drawn().split("thorn", n_train=20)


def test_a_mark_tells_data_and_split_apart() -> None:
    def source(*counts: int) -> RuneSource:
        bitmaps = {
            str(i): torch.zeros(n, 105, 105, dtype=torch.uint8) for i, n in enumerate(counts)
        }
        return RuneSource("drawings", bitmaps)

    twenty = source(20, 20)
    assert twenty.mark() == twenty.mark(10) == twenty.digest[:12]
    assert twenty.mark(5) == f"{twenty.digest[:12]}/5"
    assert source(12, 12).mark().endswith("/6")
    assert source(12, 20).mark().endswith("/6-10")
    assert source(12, 20).mark(4).endswith("/4")
    assert source(3, 20).mark(4).endswith("/4"), "nobody need ask for the rune of three"
    assert source(12).mark()[:12] != source(20).mark()[:12]


def test_dataset_is_pairs() -> None:
    images = torch.rand(10, 1, 28, 28)
    dataset = DrawingDataset(images)
    pairs = list(dataset)  # type: ignore[call-overload]
    assert len(dataset) == len(pairs) == 10
    for (image, label), expected in zip(pairs, images, strict=True):
        assert torch.equal(image, expected)
        assert label == 10 and type(label) is int
    loaded, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=10)))
    assert torch.equal(loaded, images) and labels.tolist() == [10] * 10
