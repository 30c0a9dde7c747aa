"""MNIST's files: read as they are or compressed, and refused in one line when broken."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import mnist
from finetune.data.mnist import RAW_DIR, digits_digest, load_mnist, missing_files, read_idx
from finetune.errors import UserError

IMAGES, LABELS, _ = mnist.FILES["test"]


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five digits in the place of the ten thousand test digits."""
    monkeypatch.setitem(mnist.FILES, "test", (IMAGES, LABELS, 5))
    raw = tmp_path / RAW_DIR
    raw.mkdir(parents=True)
    images = np.arange(5 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(5, 28, 28)
    (raw / IMAGES).write_bytes(idx_bytes(images))
    (raw / LABELS).write_bytes(idx_bytes(np.array([3, 1, 4, 1, 5], np.uint8)))
    return tmp_path


def compress(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def assert_refused(directory: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_mnist(directory, "test")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_reads_the_same_digits_from_plain_and_compressed_files(tiny: Path) -> None:
    images, labels = load_mnist(tiny, "test")
    assert images.shape == (5, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.tolist() == [3, 1, 4, 1, 5] and labels.dtype == torch.long
    assert images[0, 0, 1, 0] == 28, "rows first"
    digest = digits_digest(images, labels)

    compress(tiny / RAW_DIR / IMAGES)
    compress(tiny / RAW_DIR / LABELS)
    again = load_mnist(tiny, "test")
    assert torch.equal(again[0], images)
    assert digits_digest(*again) == digest


def test_digest_sees_one_pixel_and_one_label(tiny: Path) -> None:
    images, labels = load_mnist(tiny, "test")
    digests = {digits_digest(images, labels)}
    images[2, 0, 5, 5] += 1
    digests.add(digits_digest(images, labels))
    labels[0] = 9
    digests.add(digits_digest(images, labels))
    assert len(digests) == 3


def test_missing_file_is_named(tiny: Path) -> None:
    train_images, train_labels, _ = mnist.FILES["train"]
    raw = tiny / RAW_DIR
    assert missing_files(tiny) == [raw / train_images, raw / train_labels]
    (raw / LABELS).unlink()
    assert_refused(tiny, str(raw / LABELS), "no such file", "--data")


def test_truncated_file_is_named(tiny: Path) -> None:
    path = tiny / RAW_DIR / IMAGES
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(tiny, str(path), "truncated", "delete it")


@pytest.mark.parametrize("n_bytes", [0, 10, 60, -9, -1])
def test_truncated_compressed_file_is_named(tiny: Path, n_bytes: int) -> None:
    packed = compress(tiny / RAW_DIR / IMAGES)
    packed.write_bytes(packed.read_bytes()[:n_bytes])
    assert_refused(tiny, str(packed), "delete it")


def test_corrupt_compressed_file_is_named(tiny: Path) -> None:
    packed = compress(tiny / RAW_DIR / IMAGES)
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    packed.write_bytes(raw)
    assert_refused(tiny, str(packed), "corrupt", "delete it")


def test_web_page_in_the_place_of_a_file_is_named(tiny: Path) -> None:
    path = tiny / RAW_DIR / LABELS
    path.write_text("<html>Not Found</html>")
    assert_refused(tiny, str(path), "not an IDX file")


def test_directory_in_the_place_of_a_file_is_named(tiny: Path) -> None:
    path = tiny / RAW_DIR / LABELS
    path.unlink()
    path.mkdir()
    assert_refused(tiny, str(path), "can't be read")


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1)])
def test_wrong_count_is_told(tiny: Path, shape: tuple[int, ...]) -> None:
    (tiny / RAW_DIR / LABELS).write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    assert_refused(tiny, str(tiny / RAW_DIR), str(shape), "expected (5, 28, 28) and (5,)")


@given(raw=st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda b: b"\0\0\x08" + b)))
def test_any_bytes_are_read_or_refused(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-idx1-ubyte"
    path.write_bytes(raw)
    try:
        array = read_idx(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert idx_bytes(array) == raw


def test_real_digits_are_the_official_ones(real_data: Path) -> None:
    if not (real_data / RAW_DIR).is_dir():
        pytest.skip(f"needs real MNIST: {RAW_DIR} in the directory that RUNES_DATA names")
    images, labels = load_mnist(real_data, "train")
    official = hashlib.md5(idx_bytes(images[:, 0].numpy())).hexdigest()
    assert official == "6bbc9ace898e44ae57da46a324031adb"
    assert labels.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
