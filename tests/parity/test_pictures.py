"""A person's pictures come out as those of training, whatever they were."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from parity import pictures
from parity.data import FolderImages, load
from parity.pictures import prepare

SIZE = (28, 28)


@pytest.fixture(scope="module")
def digits():
    return load("mnist-subset").test_images[:40, 0]


def saved(picture, path, **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(path, **options)
    return path


def seen(path, style="digit", size=SIZE, channels=1, **options):
    prepared = prepare(path, size, channels, style, **options)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.pixels.shape == (channels, *size)
    return prepared


def seven(ink=0, paper=255, width=14, size=(300, 400)):
    picture = Image.new("L", size, paper)
    draw = ImageDraw.Draw(picture)
    draw.line([(90, 120), (200, 110), (130, 300)], fill=ink, width=width)
    return picture


def alike(a, b):
    """Return the correlation of two pictures."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_digit_as_in_training_is_left_as_it_is(digits, tmp_path):
    for digit in digits:
        path = saved(digit, tmp_path / "digit.png")
        assert np.array_equal(seen(path).pixels[0], digit)
        path = saved(255 - digit, tmp_path / "inverted.png")
        prepared = seen(path)
        assert np.array_equal(prepared.pixels[0], digit)
        assert "inverted (it is dark on light)" in prepared.steps


@pytest.mark.parametrize("light", [False, True])
def test_digit_is_found_wherever_it_stands(digits, light, tmp_path):
    rng = np.random.default_rng(4)
    found = []
    for digit in digits:
        side = int(rng.integers(60, 300))
        height, width = side + rng.integers(20, 300, 2)
        top, left = rng.integers(0, height - side), rng.integers(0, width - side)
        field = np.zeros((height, width))
        large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
        field[top : top + side, left : left + side] = np.asarray(large)
        field = 20 + 0.7 * field + rng.normal(0, 3, field.shape)
        levels = (255 - field if light else field).clip(0, 255).astype(np.uint8)
        path = saved(levels, tmp_path / "digit.png")
        found.append(alike(seen(path).pixels[0], digit))
    assert np.median(found) > 0.95
    assert min(found) > 0.8


def test_strokes_and_centres_are_what_is_said_of_mnist():
    """`pictures` works with these figures, and measures strokes in this way."""
    images = load("mnist-subset").test_images[:, 0]
    widths = []
    for image in images:
        mask = image > 127
        box = pictures._bounds(mask)
        widths.append(pictures._stroke_width(mask) / max(mask[box].shape))
    assert np.round(np.percentile(widths, (5, 95)), 2).tolist() == [0.11, 0.22]
    centres = [pictures._mass_centre(image.astype(np.float32)) for image in images]
    assert np.round(np.mean(centres, axis=0), 1).tolist() == [14.0, 14.0]


def test_centre_of_mass_and_box_are_those_of_mnist(tmp_path):
    pixels = seen(saved(seven(), tmp_path / "7.png")).pixels[0].astype(float)
    rows, columns = np.nonzero(pixels)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    grid = np.arange(28)
    total = pixels.sum()
    assert pixels.sum(axis=1) @ grid / total == pytest.approx(14, abs=0.6)
    assert pixels.sum(axis=0) @ grid / total == pytest.approx(14, abs=0.6)


def test_dark_on_light_and_light_on_dark_come_out_equal(tmp_path):
    dark = seen(saved(seven(0, 255), tmp_path / "dark.png"))
    light = seen(saved(seven(255, 0), tmp_path / "light.png"))
    assert np.array_equal(dark.pixels, light.pixels)
    assert "inverted (it is dark on light)" in dark.steps
    assert "inverted (it is dark on light)" not in light.steps


def test_background_can_be_said(tmp_path):
    path = saved(seven(0, 255), tmp_path / "dark.png")
    given = seen(path, background="light").pixels
    assert np.array_equal(seen(path).pixels, given)
    with pytest.raises(ValueError, match="shows no digit on a dark background"):
        seen(path, background="dark")
    with pytest.raises(ValueError, match="unknown background 'lite'; did you mean"):
        seen(path, background="lite")


@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_turned_by_exif_comes_out_upright(sixteen_bit, tmp_path):
    upright = seen(saved(seven(), tmp_path / "upright.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = seven().transpose(Image.Transpose.ROTATE_90)
    if sixteen_bit:
        turned = Image.fromarray(np.asarray(turned).astype(np.uint16) * 257)
    path = saved(turned, tmp_path / "turned.png", exif=exif)
    prepared = seen(path)
    assert np.array_equal(prepared.pixels, upright.pixels)
    assert prepared.steps[:2] == ("300×400", "turned upright by its EXIF entry")
    one, other = (
        FolderImages([tmp_path / f"{name}.png"], (28, 28), 1)[:1]
        for name in ("turned", "upright")
    )
    assert np.array_equal(one, other)


@pytest.mark.parametrize("ink", [0, 255])
def test_strokes_on_nothing_are_seen(ink, tmp_path):
    stroke = seven(255, 0)
    picture = Image.new("RGBA", stroke.size, (ink, ink, ink, 0))
    picture.putalpha(stroke)
    prepared = seen(saved(picture, tmp_path / "alpha.png"))
    expected = seen(saved(stroke, tmp_path / "opaque.png")).pixels
    assert alike(prepared.pixels, expected) > 0.99
    assert f"transparent parts made {'black' if ink else 'white'}" in prepared.steps


def test_uneven_light_noise_and_specks_are_taken_away(tmp_path):
    clean = seen(saved(seven(), tmp_path / "clean.png")).pixels
    ink = 1 - np.asarray(seven(), float) / 255
    ink[380:384, 20:24] = 1
    ink[390:, :] = 1  # the edge of the table
    y, x = np.mgrid[:400, :300]
    levels = (230 - 0.25 * x - 0.1 * y) * (1 - 0.75 * ink)
    levels += np.random.default_rng(0).normal(0, 4, levels.shape)
    photo = np.stack([levels, 0.97 * levels, 0.9 * levels], axis=-1)
    path = saved(photo.clip(0, 255).astype(np.uint8), tmp_path / "photo.png")
    prepared = seen(path)
    assert alike(prepared.pixels, clean) > 0.97
    assert "uneven light taken away" in prepared.steps


def test_thin_strokes_are_made_thicker(tmp_path):
    thin = seen(saved(seven(width=3), tmp_path / "thin.png"))
    thick = seen(saved(seven(width=20), tmp_path / "thick.png"))
    assert any("strokes made thicker, from 2% to" in step for step in thin.steps)
    assert not any("thicker" in step for step in thick.steps)
    assert thin.pixels.sum() > 0.4 * thick.pixels.sum()


def test_colours_as_bright_as_each_other_are_told_apart(tmp_path):
    ink = np.asarray(seven(255, 0))[..., None] > 127
    colours = np.where(ink, (60, 135, 60), (200, 60, 60)).astype(np.uint8)
    prepared = seen(saved(colours, tmp_path / "colours.png"))
    expected = seen(saved(seven(), tmp_path / "grey.png")).pixels
    assert alike(prepared.pixels, expected) > 0.99
    assert "its red alone, as its greys are alike" in prepared.steps


def test_what_is_hardly_one_digit_is_doubted(digits, tmp_path):
    two = np.hstack([np.pad(digit, 4) for digit in digits[:2]])
    prepared = seen(saved(two.repeat(4, 0).repeat(4, 1), tmp_path / "two.png"))
    assert "like two digits side by side: show one at a time" in prepared.steps
    sheet = Image.new("L", (300, 300), 30)
    sheet.paste(seven().resize((150, 200)), (70, 50))
    prepared = seen(saved(sheet, tmp_path / "sheet.png"))
    assert "solid as a sheet of paper: show a digit alone" in prepared.steps
    doubted = 0
    for digit in load("mnist-subset").train_images[:, 0]:
        found = pictures._main_parts(digit > 127)
        doubted += bool(pictures._doubts(found[pictures._bounds(found)]))
    assert doubted <= 1, "of 10,000 real ones"


def test_object_fills_the_field(tmp_path):
    picture = Image.new("RGB", (200, 300), "white")
    ImageDraw.Draw(picture).rectangle([60, 100, 139, 259], fill=(40, 90, 60))
    pixels = seen(saved(picture, tmp_path / "dress.png"), "object").pixels[0]
    rows, columns = np.nonzero(pixels > 128)
    assert (rows.min(), rows.max()) == (0, 27)
    assert (columns.min(), columns.max()) == (7, 20)


def test_photo_covers_the_size_around_its_middle(tmp_path):
    photo = np.zeros((40, 100, 3), np.uint8)
    photo[:, 30:70] = (200, 100, 50)
    prepared = seen(saved(photo, tmp_path / "p.png"), "photo", (20, 20), 3)
    # Interpolation reaches a little over the cut.
    inner = prepared.pixels[:, :, 2:-2]
    assert (inner == np.array([200, 100, 50])[:, None, None]).all()
    assert prepared.steps == ("100×40", "cut to its middle", "scaled to 20×20")
    grey = seen(tmp_path / "p.png", "photo", (20, 20), 1)
    assert "made grey" in grey.steps


@pytest.mark.parametrize("channels", [3, 4])
def test_photo_is_as_a_data_set_of_folders_reads_it(channels, tmp_path):
    """Four are red, green, blue and how opaque they are."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (50, 70, channels), np.uint8)
    path = saved(pixels, tmp_path / "p.png")
    expected = FolderImages([path], (32, 32), 3).read(path)
    assert np.array_equal(seen(path, "photo", (32, 32), 3).pixels, expected)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "I;16", "RGBA"])
def test_every_mode_is_read(mode, tmp_path):
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(seven()).astype(np.uint16) * 257)
    else:
        picture = seven().convert(mode)
    path = saved(picture, tmp_path / "p.tif")
    expected = seen(saved(seven(), tmp_path / "l.png")).pixels
    assert alike(seen(path).pixels, expected) > 0.99
    seen(path, "photo", (16, 16), 3)


def test_what_cannot_be_used_is_refused_by_name(tmp_path):
    blank = saved(np.full((50, 50), 90, np.uint8), tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"blank\.png must show a digit on a plain"):
        seen(blank)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    with pytest.raises(ValueError, match=r"broken\.png is no picture that can be"):
        seen(broken)
    cut = tmp_path / "cut.png"
    seven().save(cut)
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.png is no picture that can be read"):
        seen(cut)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        seen(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        seen(tmp_path)
    with pytest.raises(ValueError, match="takes 4 channels"):
        prepare(blank, SIZE, 4)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pictures need Pillow.*'vit-parity\[train\]'"
    ):
        prepare(tmp_path / "a.png", (8, 8), 1)


def test_tiny_pictures_are_not_fatal(tmp_path):
    dot = np.zeros((3, 3), np.uint8)
    dot[1, 1] = 255
    assert seen(saved(dot, tmp_path / "dot.png")).pixels.max() == 255
    line = np.zeros((1, 5), np.uint8)
    line[0, 2] = 255
    assert seen(saved(line, tmp_path / "line.png")).pixels.max() == 255
