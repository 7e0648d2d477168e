import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.processes import FORKED
from torch.utils.data import DataLoader

from cxr.data import images as module
from cxr.data.images import ChestXrays, augment, decode, decode_images, find_images, normalize


def xray(rng, width=60, height=40, detail=4):
    """A smooth grey picture: JPEG keeps it almost unchanged."""
    small = Image.fromarray(rng.integers(0, 256, (detail, detail), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def write(file, picture):
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, **({"quality": 95} if file.suffix == ".jpg" else {}))


@pytest.fixture
def table():
    paths = [f"files/p10/p1000000{i}/s5000000{i}/d{i}.jpg" for i in range(10)]
    return pd.DataFrame({"dicom_id": [f"d{i}" for i in range(10)], "path": paths})


@pytest.fixture
def root(tmp_path, table):
    rng = np.random.default_rng(0)
    for path in table["path"]:
        write(tmp_path / "data" / path, xray(rng))
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded, in the order of decoding."""
    names = []

    def recording(path, size):
        names.append(Path(path).name)
        return decode(path, size)

    monkeypatch.setattr(module, "decode", recording)
    return names


# One image


@pytest.mark.parametrize(("width", "height"), [(500, 320), (320, 500), (400, 400), (30, 20)])
def test_decoding_keeps_the_aspect_and_pads_to_a_centred_square(tmp_path, width, height):
    write(tmp_path / "x.jpg", Image.new("L", (width, height), 200))
    square = decode(tmp_path / "x.jpg", 100)
    assert square.shape == (100, 100)
    rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    assert max(len(rows), len(columns)) == 100
    assert len(columns) / len(rows) == pytest.approx(width / height, rel=0.02)
    for used in (rows, columns):
        assert abs(used[0] - (99 - used[-1])) <= 1
    np.testing.assert_allclose(square[np.ix_(rows, columns)], 200, atol=1)


def test_draft_mode_gives_the_image_of_full_decoding(tmp_path):
    picture = xray(np.random.default_rng(1), 512, 384, detail=24)
    write(tmp_path / "x.jpg", picture)
    in_full = np.asarray(picture.resize((64, 48), Image.Resampling.LANCZOS), dtype=int)
    assert np.abs(decode(tmp_path / "x.jpg", 64)[8:56] - in_full).max() <= 3


def test_colour_and_png_files_are_read_as_grey(tmp_path):
    picture = xray(np.random.default_rng(2))
    write(tmp_path / "x.png", picture.convert("RGBA"))
    write(tmp_path / "y.png", picture)
    np.testing.assert_allclose(decode(tmp_path / "x.png", 60).astype(int), decode(tmp_path / "y.png", 60), atol=1)


# Where the images lie


@pytest.mark.parametrize(
    "place",
    [
        "files/{}.jpg",
        "{}.jpg",
        "files-512/{}.jpg",
        "files/{}_320.jpg",
        "files_224/{}_224.jpg",
        "mimic-cxr-jpg-224/files/{}.jpg",
        "mimic-cxr-jpg-224/{}.png",
        "physionet.org/files/mimic-cxr-jpg/2.1.0/files/{}.jpg",
    ],
)
def test_usual_layouts_are_found(tmp_path, table, place):
    expected = [tmp_path / place.format(p.removeprefix("files/").removesuffix(".jpg")) for p in table["path"]]
    for file in expected:
        write(file, Image.new("L", (8, 8)))
    assert find_images(tmp_path, table["path"].tolist()) == expected


def test_the_most_complete_layout_is_taken(root, table):
    for path in table["path"][:3]:
        write(root / path.replace("files/", "files-512/"), Image.new("L", (8, 8)))
    assert find_images(root, table["path"].tolist())[0] == root / table["path"][0]


def test_no_image_in_any_layout_is_an_error_that_names_what_was_tried(tmp_path, table):
    (tmp_path / "files-512").mkdir()
    with pytest.raises(ValueError, match=r"data_root: found none of 10 images tried.*files-512.*_320\.jpg"):
        find_images(tmp_path, table["path"].tolist())


# The store


def test_the_store_holds_the_decoded_images_in_order(root, table, tmp_path):
    store = decode_images(table, root, tmp_path / "cache", size=32)
    assert len(store) == 10
    for i, path in enumerate(table["path"]):
        np.testing.assert_array_equal(store[i], decode(root / path, 32))
    np.testing.assert_array_equal(store[np.array([7, 2])], np.stack([store[7], store[2]]))
    assert store.failures.empty


def test_a_second_run_decodes_nothing(root, table, tmp_path, decoded):
    first = decode_images(table, root, tmp_path / "cache", size=32)
    decoded.clear()
    second = decode_images(table, root, tmp_path / "cache", size=32)
    assert decoded == []
    np.testing.assert_array_equal(first[np.arange(10)], second[np.arange(10)])


def test_unreadable_images_are_listed_left_out_and_tried_again(root, table, tmp_path, decoded):
    good = (root / table["path"][5]).read_bytes()
    (root / table["path"][2]).unlink()
    (root / table["path"][5]).write_bytes(good[: len(good) // 2])
    (root / table["path"][7]).write_bytes(b"")
    store = decode_images(table, root, tmp_path / "cache", size=32)
    assert store.rows.tolist() == [0, 1, 3, 4, 6, 8, 9]
    np.testing.assert_array_equal(store[2], decode(root / table["path"][3], 32))
    assert store.failures["dicom_id"].tolist() == ["d2", "d5", "d7"]
    assert store.failures["reason"][0] == "there is no such file"
    (listed,) = (tmp_path / "cache").glob("*/failures.csv")
    assert pd.read_csv(listed)["dicom_id"].tolist() == ["d2", "d5", "d7"]

    (root / table["path"][5]).write_bytes(good)
    decoded.clear()
    again = decode_images(table, root, tmp_path / "cache", size=32)
    assert sorted(decoded) == ["d2.jpg", "d5.jpg", "d7.jpg"]
    assert again.failures["dicom_id"].tolist() == ["d2", "d7"]
    np.testing.assert_array_equal(again[np.flatnonzero(again.rows == 5)[0]], decode(root / table["path"][5], 32))


def test_only_unreadable_images_are_an_error(root, table, tmp_path):
    for path in table["path"]:
        (root / path).write_bytes(b"not an image")
    with pytest.raises(ValueError, match="none of 10 images can be read; the first one: UnidentifiedImageError"):
        decode_images(table, root, tmp_path / "cache", size=32)


def test_another_cohort_size_or_folder_is_not_served_from_the_cache(root, table, tmp_path):
    cache = tmp_path / "cache"
    decode_images(table, root, cache, size=32)
    reordered = table.iloc[::-1].reset_index(drop=True)
    np.testing.assert_array_equal(
        decode_images(reordered, root, cache, size=32)[0], decode(root / table["path"][9], 32)
    )
    assert decode_images(table.iloc[:4], root, cache, size=32)[np.arange(4)].shape == (4, 32, 32)
    assert decode_images(table, root, cache, size=16)[0].shape == (16, 16)
    other = tmp_path / "other"
    rng = np.random.default_rng(9)
    for path in table["path"]:
        write(other / path, xray(rng))
    np.testing.assert_array_equal(decode_images(table, other, cache, size=32)[0], decode(other / table["path"][0], 32))


def test_a_replaced_image_is_decoded_again(root, table, tmp_path, decoded):
    decode_images(table, root, tmp_path / "cache", size=32)
    file = root / table["path"][4]
    write(file, xray(np.random.default_rng(8)))
    os.utime(file, ns=(1, 2 * 10**9))
    decoded.clear()
    store = decode_images(table, root, tmp_path / "cache", size=32)
    assert decoded == ["d4.jpg"]
    np.testing.assert_array_equal(store[4], decode(file, 32))


def test_ctrl_c_keeps_what_is_done(root, table, tmp_path, monkeypatch, decoded):
    recording = module.decode

    def interrupted(path, size):
        if Path(path).name == "d5.jpg":
            raise KeyboardInterrupt
        return recording(path, size)

    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_images(table, root, tmp_path / "cache", size=32)
    decoded.clear()
    monkeypatch.setattr(module, "decode", recording)
    store = decode_images(table, root, tmp_path / "cache", size=32)
    assert sorted(decoded) == [f"d{i}.jpg" for i in range(4, 10)]
    np.testing.assert_array_equal(store[np.arange(10)], [decode(root / path, 32) for path in table["path"]])


def decode_slowly(table, root, cache):
    """Decode images one by one, with pauses."""
    module.CHUNK, module.decode = 1, lambda path, size: (time.sleep(0.1), decode(path, size))[1]
    decode_images(table, root, cache, size=32)


@pytest.mark.slow
def test_a_killed_run_goes_on(root, table, tmp_path, decoded):
    process = FORKED.Process(target=decode_slowly, args=(table, root, tmp_path / "cache"))
    process.start()
    try:
        deadline = time.monotonic() + 60
        n_done = 0
        while n_done < 3 and process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.02)
            n_done = sum(np.count_nonzero(np.load(file)) for file in (tmp_path / "cache").glob("images-*/stamps.npy"))
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert n_done >= 3
    store = decode_images(table, root, tmp_path / "cache", size=32)
    assert 0 < len(decoded) <= 10 - n_done
    np.testing.assert_array_equal(store[np.arange(10)], [decode(root / path, 32) for path in table["path"]])


def test_a_disk_without_room_is_refused_before_anything_is_written(root, table, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(OSError, match=r"decoded images need 0\.0 GB, 0\.0 GB are free"):
        decode_images(table, root, tmp_path / "cache", size=32)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_leaves_a_state_to_go_on_from(root, table, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(module, "CHUNK", 2)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device; what is done is kept, run again to go on"):
            decode_images(table, root, tmp_path / "cache", size=32)
    decoded.clear()
    store = decode_images(table, root, tmp_path / "cache", size=32)
    assert sorted(decoded) == [f"d{i}.jpg" for i in range(4, 10)]
    np.testing.assert_array_equal(store[np.arange(10)], [decode(root / path, 32) for path in table["path"]])


def test_the_store_travels_to_a_worker_without_its_pixels(root, table, tmp_path):
    store = decode_images(table, root, tmp_path / "cache", size=256)
    packed = pickle.dumps(store)
    assert len(packed) < 256 * 256
    np.testing.assert_array_equal(pickle.loads(packed)[3], store[3])


# The data set


def test_data_set_gives_normalised_images_and_their_index(root, table, tmp_path):
    store = decode_images(table, root, tmp_path / "cache", size=32)
    batch, index = next(iter(DataLoader(ChestXrays(store, [7, 0, 3]), batch_size=3)))
    assert index.tolist() == [7, 0, 3]
    expected = (store[index.numpy()].astype(np.float32) - 101.48761) / 83.43944
    np.testing.assert_allclose(batch.numpy(), np.repeat(expected[:, None], 3, axis=1), rtol=1e-5, atol=1e-6)
    raw, _ = next(iter(DataLoader(ChestXrays(store, [7, 0, 3], raw=True), batch_size=3)))
    assert raw.dtype == torch.uint8
    torch.testing.assert_close(normalize(raw), batch)


def test_augmentation_is_light_differs_by_image_and_follows_the_generator():
    ramp = torch.linspace(-1, 1, 64).expand(64, 64)
    batch = (ramp * ramp.T).expand(16, 3, 64, 64)
    one, same = (augment(batch, torch.Generator().manual_seed(0)) for _ in range(2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(one, augment(batch, torch.Generator().manual_seed(1)))
    assert (one - one.roll(1, dims=0)).flatten(1).abs().amax(1).min() > 0.01
    assert (one - batch).abs().mean() < 0.2
    similar = torch.cosine_similarity(one.flatten(1), batch.flatten(1))
    mirrored = torch.cosine_similarity(one.flatten(1), batch.flip(-1).flatten(1))
    assert (similar > mirrored).all()
    assert similar.min() > 0.8


def test_augmentation_moves_by_no_more_than_it_says():
    """A bright point two thirds of the way out: turned by 5°, shifted by 5 % and scaled by 5 % it stays near."""
    batch = torch.zeros(200, 1, 101, 101)
    batch[:, :, 46:55, 79:88] = 1.0  # centred at (50, 83), 33 right of the middle
    moved = augment(batch, torch.Generator().manual_seed(0))
    moved = (moved - moved.amin((2, 3), keepdim=True)).squeeze(1)
    mass, axis = moved.sum((1, 2)), torch.arange(101.0)
    row, column = (moved.sum(2) @ axis) / mass, (moved.sum(1) @ axis) / mass
    assert (row - 50).abs().max() < 33 * np.sin(np.deg2rad(5)) * 1.05 + 5.05 * 1.05 + 1
    assert (column - 83).abs().max() < 33 * 0.06 + 5.05 * 1.05 + 1
    assert (row - 50).abs().max() > 4
