"""Sheets of pictures: what stands where, and that a pixel stays itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity.data import BatchStream, from_arrays
from parity.data.sheet import _LINE, _shares, augmentation_sheet, contact_sheet
from vit_numpy.draws import HorizontalFlip, MixUp, PadCrop

pytest.importorskip("PIL")

GAP, CELL = 10, 96


def make_images(count, channels=3, height=8, width=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, channels, height, width), np.uint8)


def picture_at(sheet, left, top, side, times):
    """Cut a square picture out, and undo its enlargement."""
    block = np.asarray(sheet)[top : top + side * times, left : left + side * times]
    return block[times // 2 :: times, times // 2 :: times].transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stand_in_rows_and_keep_their_pixels(channels):
    images = make_images(5, channels)
    sheet = contact_sheet(images, columns=3)
    assert sheet.size == (3 * (CELL + GAP) + GAP, GAP + 2 * (CELL + GAP))
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        place = (GAP + column * (CELL + GAP), GAP + row * (CELL + GAP))
        got = picture_at(sheet, *place, 8, 12)
        np.testing.assert_array_equal(got, np.broadcast_to(image, (3, 8, 8)))
    # The sixth place is paper.
    assert (np.asarray(sheet)[-CELL:, -CELL:] == 255).all()


def test_words_take_their_room_and_are_cut():
    images = np.full((4, 3, 8, 8), 255, np.uint8)
    bare = contact_sheet(images, columns=2)
    short = contact_sheet(images, ["a", "b", "c", "d"], columns=2)
    long = contact_sheet(images, ["a", "b" * 500, "c", "d\ne"], columns=2)
    assert bare.height < short.height < long.height
    assert bare.width == short.width == long.width
    assert (np.asarray(bare) == 255).all()
    assert (np.asarray(short) < 128).any()
    # The gap on the right of the second column stays free.
    assert (np.asarray(long)[:, -4:] == 255).all()
    titled = contact_sheet(images, title="t" * 500, headings=["x", "y"], columns=2)
    assert titled.height > bare.height
    assert (np.asarray(titled)[:, -4:] == 255).all()


def test_large_pictures_are_reduced():
    sheet = contact_sheet(make_images(2, height=300, width=150), columns=2)
    assert sheet.size == (2 * (CELL + GAP) + GAP, GAP + 144 + GAP)


def columns_of(sheet, rows, columns, row_height, top):
    """Return the pictures of a sheet of 8×8 images, an array a column."""
    return [
        np.stack(
            [
                picture_at(
                    sheet, GAP + column * (CELL + GAP), top + row * row_height, 8, 12
                )
                for row in range(rows)
            ]
        )
        for column in range(columns)
    ]


def test_columns_are_what_the_epochs_of_a_run_see():
    part = from_arrays(make_images(30), np.arange(30) % 3).train
    augment = [HorizontalFlip(), PadCrop(2)]
    sheet = augmentation_sheet(part, augment, count=4, epochs=3, seed=7)
    row_height = CELL + _LINE + GAP
    top = sheet.height - 4 * row_height
    assert top == GAP + _LINE
    stored, *looks = columns_of(sheet, 4, 4, row_height, top)
    stream = BatchStream(part, 30, 7, augment=augment, normalize=False)
    rows = stream.order(0)[:4]
    np.testing.assert_array_equal(stored, part.images[rows])
    for epoch, look in enumerate(looks):
        batch = next(stream.epoch(epoch))
        places = [batch.indices.tolist().index(row) for row in rows]
        np.testing.assert_array_equal(look, batch.images[places])
        assert (look != stored).any()


def test_mixed_pictures_say_their_shares():
    part = from_arrays(make_images(30), np.arange(30) % 3).train
    plain = augmentation_sheet(part, [], count=4, epochs=2, seed=7)
    mixed = augmentation_sheet(part, [MixUp()], count=4, epochs=2, seed=7)
    # Two lines a picture, as there are two classes in most.
    assert mixed.width == plain.width
    assert mixed.height > plain.height
    assert _shares(np.array([0.3, 0.0, 0.7]), "abc") == "70% c\n30% a"
    assert _shares(np.array([0.003, 0.0, 0.997]), "abc") == "c"


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"shape \(B, 1 or 3, H, W\) .*got \(2, 2, 8, 8\)", {"channels": 2}),
        ("captions must be as many as images, got 1 captions", {"captions": ["a"]}),
        ("at most one a column, got 9 headings", {"headings": ["a"] * 9}),
        ("columns must be at least 1", {"columns": 0}),
    ],
)
def test_wrong_sheets_are_refused(message, arguments):
    images = make_images(2, arguments.pop("channels", 3))
    with pytest.raises(ValueError, match=message):
        contact_sheet(images, **arguments)
    with pytest.raises(ValueError, match="count must be at least 1"):
        augmentation_sheet(from_arrays(images[:, :1], [0, 1]).train, [], count=0)


def test_a_recipe_is_shown_by_a_command(tmp_path):
    from PIL import Image

    script = Path(__file__).parents[2] / "scripts" / "show_augmentation.py"
    out = tmp_path / "sheet.png"
    command = [sys.executable, script, "network1", "--data", "mnist-subset"]
    command += ["--images", "2", "--epochs", "3", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"network1 on mnist-subset -> {out}\n"
    with Image.open(out) as sheet:
        # 28 pixels, four times.
        assert sheet.width == 4 * (112 + GAP) + GAP
    done = subprocess.run(
        [*command[:-1], tmp_path / "sheet.xyz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "show_augmentation.py: unknown file extension: .xyz\n"
