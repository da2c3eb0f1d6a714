"""Every kind of image file ends as a square of RGB bytes or as one line that names it; nothing hangs."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.data import images
from saga_dist.data.images import MAX_PIXELS, augment, read_image
from saga_dist.errors import DataError
from saga_dist.utils.rng import counter_generator


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, 8)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def gradient(width: int = 12, height: int = 12) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 20, columns * 20, np.full_like(rows, 90)], axis=-1).astype(np.uint8)


def test_pixels_of_a_png_of_the_right_size_come_back_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    got = read_image(saved(tmp_path / "a.png", Image.fromarray(pixels)), 8)
    assert got.dtype == np.uint8
    assert got.flags.writeable
    np.testing.assert_array_equal(got, pixels)


def test_the_whole_image_is_resized_bicubic_without_a_crop(tmp_path: Path) -> None:
    image = Image.fromarray(gradient(12, 10)).resize((40, 20))
    want = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", image), 8), want)
    halves = np.zeros((4, 200, 3), np.uint8)  # 50:1, left half black, right half white
    halves[:, 100:] = 255
    got = read_image(saved(tmp_path / "b.png", Image.fromarray(halves)), 8)
    assert got[:, :3].max() < 20
    assert got[:, 5:].min() > 235


def test_one_pixel_fills_the_square(tmp_path: Path) -> None:
    got = read_image(saved(tmp_path / "a.png", Image.new("RGB", (1, 1), (10, 20, 30))), 6)
    np.testing.assert_array_equal(got, np.broadcast_to(np.uint8([10, 20, 30]), (6, 6, 3)))


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "want"),
    [
        ("RGB", (200, 100, 50), ".png", (200, 100, 50)),
        ("L", 77, ".png", (77, 77, 77)),
        ("1", 1, ".png", (255, 255, 255)),
        ("LA", (77, 255), ".png", (77, 77, 77)),
        ("LA", (77, 0), ".png", (255, 255, 255)),
        ("RGBA", (200, 100, 50, 255), ".png", (200, 100, 50)),
        ("RGBA", (200, 100, 50, 0), ".png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), ".png", (204, 204, 204)),
        ("RGBA", (200, 100, 50, 0), ".webp", (255, 255, 255)),
        ("I;16", 200 * 256 + 17, ".png", (200, 200, 200)),
        ("CMYK", (0, 255, 255, 0), ".jpg", (254, 0, 0)),
        ("L", 77, ".jpg", (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, color: int | tuple[int, ...], suffix: str, want: tuple[int, int, int]
) -> None:
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100} if suffix == ".jpg" else {}
    got = read_image(saved(tmp_path / f"a{suffix}", Image.new(mode, (9, 9), color), **options), 5)
    assert got.shape == (5, 5, 3)
    assert np.abs(got.astype(int) - want).max() <= (2 if suffix == ".jpg" else 0)


def test_a_palette_gives_its_colors_and_its_transparent_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", image), 4)[0, 0], [10, 200, 30])
    got = read_image(saved(tmp_path / "b.png", image, transparency=1), 4)
    np.testing.assert_array_equal(got[0, 0], [255, 255, 255])


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 6), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(read_image(path, 4), np.broadcast_to(np.uint8([255, 0, 0]), (4, 4, 3)))


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for viewing
    got = read_image(saved(tmp_path / "a.png", Image.fromarray(pixels), exif=exif), 12)
    np.testing.assert_array_equal(got, np.rot90(pixels, k=-1))


def test_the_name_does_not_decide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "really_png.jpg"
    Image.fromarray(gradient()).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(path, 12), gradient())


def test_a_banner_is_cut_off_the_upright_image_before_scaling(tmp_path: Path) -> None:
    pixels = gradient(12, 12)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    want = np.asarray(Image.fromarray(pixels[:9]).resize((6, 6), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read_image(path, 6, banner=3), want)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(tmp_path / "b.png", Image.fromarray(pixels), exif=exif)
    want = np.asarray(Image.fromarray(np.rot90(pixels, k=-1)[:9]).resize((6, 6), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read_image(turned, 6, banner=3), want)
    with pytest.raises(DataError, match="12 x 12 pixels with a banner of 12"):
        read_image(path, 6, banner=12)


def smooth(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([rows * 255 / height, columns * 255 / width, np.full(rows.shape, 90)], -1).astype(np.uint8)
    )


@pytest.mark.parametrize(("height", "width", "decoded"), [(640, 800, (80, 100)), (400, 130, (400, 130))])
def test_fast_decoding_keeps_the_size_and_nearly_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int, decoded: tuple[int, int]
) -> None:
    path = saved(tmp_path / "a.jpg", smooth(height, width), quality=95)
    sizes = []
    upright = images._upright_rgb

    def spy(image: Image.Image, banner: int) -> Image.Image:
        sizes.append((image.height, image.width))
        return upright(image, banner)

    monkeypatch.setattr(images, "_upright_rgb", spy)
    fast, exact = (read_image(path, 72, fast_jpeg=fast) for fast in (True, False))
    assert (fast.dtype, fast.shape, fast.flags.writeable) == (np.uint8, (72, 72, 3), True)
    fast, exact = fast.astype(int), exact.astype(int)
    assert sizes == [decoded, (height, width)]
    assert np.abs(fast - exact).mean() < 1.5


def test_fast_decoding_cuts_the_banner_at_the_decoded_scale(tmp_path: Path) -> None:
    pixels = np.zeros((640, 640, 3), np.uint8)
    pixels[-20:] = 255
    path = saved(tmp_path / "a.jpg", Image.fromarray(pixels), quality=95)
    assert read_image(path, 64, banner=20, fast_jpeg=True).max() < 20
    assert read_image(path, 64, fast_jpeg=True).max() > 200


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO", "PCX", "SGI", "QOI", "JPEG2000", "DDS"])
def test_every_still_picture_is_read_whatever_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient(16, 16)).save(path, format=kind)
    np.testing.assert_array_equal(read_image(path, 16), gradient(16, 16))


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_lossy_pictures_are_read(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ((200, 100, 50), (0, 0, 255))]
    path = tmp_path / "a.bin"
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])
    assert np.abs(read_image(path, 8).astype(int) - (200, 100, 50)).max() <= 3  # of the first frame


def test_the_first_page_of_a_tiff_is_read_upright(tmp_path: Path) -> None:
    pages = [Image.fromarray(gradient()), Image.new("RGB", (12, 12), (0, 0, 255))]
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:], exif=exif)
    np.testing.assert_array_equal(read_image(path, 12), np.rot90(gradient(), k=-1))


@pytest.mark.parametrize("kind", ["PDF", "EPS"])
def test_documents_and_drawings_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient()).save(path, format=kind)
    assert "not an image, or damaged; expected a still picture that Pillow reads" in refused(path)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((9, 9), 0.5, np.float32), "pixels of mode F; expected RGB, grey, palette or CMYK"),
        (np.full((9, 9), 70_000, np.int32), "whole numbers of 32 bits; expected RGB, grey"),
        (np.full((9, 9), -1, np.int32), "whole numbers of 32 bits"),
    ],
)
def test_pixels_without_an_agreed_brightness_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    assert message in refused(saved(tmp_path / "a.tif", Image.fromarray(pixels)))


def test_text_is_not_read_as_a_format_without_a_signature(tmp_path: Path) -> None:
    tga = io.BytesIO()
    Image.fromarray(gradient()).save(tga, format="TGA")
    (tmp_path / "a.tga").write_bytes(tga.getvalue())
    (tmp_path / "a.jpg").write_bytes(tga.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "a.tga", 12), gradient())
    assert "not an image" in refused(tmp_path / "a.jpg")


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()))

    def deny(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    assert "cannot read the image (Permission denied); make it readable" in refused(path)


def test_empty_text_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    assert "not an image" in refused(tmp_path / "empty.jpg")
    assert "not an image" in refused(tmp_path / "text.jpg")
    assert "No such file" in refused(tmp_path / "missing.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "No such file" in refused(tmp_path / "gone.jpg")
    assert "null" in refused(Path(f"{tmp_path}/a\0b.jpg"))


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refused(tmp_path / "pipe.jpg")
    assert "not a regular file" in refused(Path("/dev/zero"))
    assert refused(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif", ".jp2"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif", ".avif", ".icns", ".dds", ".bmp"])
def test_flipped_bytes_give_an_image_or_one_line_never_another_exception(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(gradient()).save(path, exif=exif)
    whole = path.read_bytes()
    generator = np.random.default_rng(1)
    refusals = []
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        damaged = bytearray(whole)
        damaged[position] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert read_image(path, 8).shape == (8, 8, 3)
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in message for message in refusals)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 9600, 14143, 60000])
def test_a_header_with_too_many_pixels_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    assert "expected at most 64 megapixels; scale the image down" in refused(path)


def test_the_largest_allowed_header_is_not_called_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(8000, 8000))
    assert "megapixels" not in refused(path)


# ---------------------------------------------------------------------- augmentation


def changed(key: int, *, flip: bool = False, shift: float = 0.0, color_jitter: float = 0.0) -> np.ndarray:
    return augment(gradient(), counter_generator(key), flip=flip, shift=shift, color_jitter=color_jitter)


def test_nothing_switched_on_changes_nothing() -> None:
    for key in range(5):
        np.testing.assert_array_equal(changed(key), gradient())


def test_augmentation_is_a_function_of_the_key_and_leaves_its_input_alone() -> None:
    image = gradient()
    first = augment(image, counter_generator(3, "x"), flip=True, shift=0.2, color_jitter=0.2)
    second = augment(image, counter_generator(3, "x"), flip=True, shift=0.2, color_jitter=0.2)
    other = augment(image, counter_generator(4, "x"), flip=True, shift=0.2, color_jitter=0.2)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(image, gradient())
    assert first.dtype == np.uint8
    assert first.shape == image.shape


def test_half_of_the_images_are_mirrored() -> None:
    mirrored = [np.array_equal(changed(key, flip=True), gradient()[:, ::-1]) for key in range(200)]
    plain = [np.array_equal(changed(key, flip=True), gradient()) for key in range(200)]
    assert all(a != b for a, b in zip(mirrored, plain, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge() -> None:
    moves = set()
    for key in range(100):
        got = changed(key, shift=0.25)  # at most 3 of 12 pixels
        down, right = (round((gradient()[6, 6, c] - float(got[6, 6, c])) / 20) for c in (0, 1))
        rows, columns = (np.clip(np.arange(12) - step, 0, 11) for step in (down, right))
        np.testing.assert_array_equal(got, gradient()[np.ix_(rows, columns)])
        moves.add((down, right))
    assert {down for down, _ in moves} == set(range(-3, 4))
    assert {right for _, right in moves} == set(range(-3, 4))


def test_jitter_multiplies_each_channel_within_its_range() -> None:
    flat = np.full((2, 2, 3), 100, np.uint8)
    gains = np.array(
        [augment(flat, counter_generator(key), flip=False, shift=0.0, color_jitter=0.3)[0, 0] for key in range(300)]
    )
    assert gains.min() >= 70
    assert gains.max() <= 130
    assert (gains.min(0) < 75).all()
    assert (gains.max(0) > 125).all()
    assert (
        augment(np.full((1, 1, 3), 250, np.uint8), counter_generator(0), flip=False, shift=0, color_jitter=1).max()
        <= 255
    )


def test_a_crop_keeps_area_and_shape_within_bounds_and_stays_inside() -> None:
    # On a ramp in both directions the four corners of the result say where the window lay.
    side = 200
    rows, columns = np.mgrid[0:side, 0:side]
    ramp = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    areas, shapes, places = [], [], []
    for key in range(200):
        got = augment(ramp, counter_generator(key), flip=False, shift=0, color_jitter=0, crop=0.4).astype(float)
        assert got.shape == ramp.shape
        down = (got[150, 0, 0] - got[50, 0, 0]) / 100
        across = (got[0, 150, 1] - got[0, 50, 1]) / 100
        areas.append(down * across)
        shapes.append(down / across)
        places.append(got[100, 100, 0])
    assert 0.38 < min(areas) < 0.5
    assert 0.9 < max(areas) < 1.03
    assert 0.73 < min(shapes) < 0.85
    assert 1.18 < max(shapes) < 1.37
    assert np.ptp(places) > 40
    for key in range(20):
        flat = np.full((8, 8, 3), 77, np.uint8)
        np.testing.assert_array_equal(
            augment(flat, counter_generator(key), flip=True, shift=0.2, color_jitter=0, crop=0.1), flat
        )


def test_switches_do_not_share_randomness() -> None:
    # With the same key, jitter alone and jitter with flip and shift use the same gains.
    flat = np.full((4, 4, 3), 100, np.uint8)
    for key in range(20):
        alone = augment(flat, counter_generator(key), flip=False, shift=0.0, color_jitter=0.5)
        together = augment(flat, counter_generator(key), flip=True, shift=0.5, color_jitter=0.5)
        np.testing.assert_array_equal(alone, together)


def test_images_kept_in_memory_match_the_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, format="JPEG", quality=95)
    path = tmp_path / "a.JPEG"
    path.write_bytes(buffer.getvalue())
    want = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(read_image(path, 12), want)


def test_images_that_are_opened_in_two_threads_leave_the_warning_filters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters belong to the process: two threads that change and restore them in turns would leave a wrong state."""
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    second_is_open, actions = threading.Event(), list[tuple[Any, ...]]()

    def open_slowly(path: Path, file: Any) -> Image.Image:
        if path == paths[0]:
            second_is_open.wait(0.3)  # the first thread ends while the second one is in the middle, unless it waits
        else:
            second_is_open.set()
            time.sleep(0.05)
        actions.append(warnings.filters[0][:3])
        return Image.open(file)

    monkeypatch.setattr("saga_dist.data.images.open_picture", open_slowly)
    warnings.filterwarnings("ignore", "of this test")  # pytest restores the filters after the test
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as threads:
        assert [image.shape for image in threads.map(lambda path: read_image(path, 4), paths)] == [(4, 4, 3)] * 2
    assert actions == [("error", None, Image.DecompressionBombWarning)] * 2
    assert warnings.filters == before
