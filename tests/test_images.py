"""Decoding, resizing and writing of images; expected grey values are computed by hand."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from raw_trees import write_dicom

from data_scripts.images import ImageError, read_image, read_radiograph, resize_longer_side, write_image

SMOOTH = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)


def save_dicom(dataset, path):
    dataset.save_as(path, enforce_file_format=True)
    return path


# --- JPEG, PNG ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_formats_are_read_as_they_are(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(SMOOTH).save(path)
    np.testing.assert_array_equal(read_image(path), SMOOTH)


def test_16_bit_png_uses_the_full_range(tmp_path):
    Image.fromarray(np.array([[0, 257, 25700, 65535]], dtype=np.uint16)).save(tmp_path / "image.png")
    np.testing.assert_allclose(read_image(tmp_path / "image.png"), [[0, 1, 100, 255]], atol=1e-4)


def test_palette_png(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    picture.putpalette([10, 10, 10, 200, 200, 200, 255, 0, 0] + [0] * 759)
    picture.save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), [[10, 200, 76]])  # .299 * 255 = 76.2


def test_transparency_is_laid_on_black(tmp_path):
    Image.fromarray(np.array([[[100, 255], [200, 0], [100, 51]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), [[100, 0, 20]])
    rgba = np.array([[[0, 255, 0, 255], [255, 255, 255, 0]]], dtype=np.uint8)
    Image.fromarray(rgba, "RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), [[150, 0]])  # .587 * 255 = 149.7


def test_the_first_picture_of_a_telephone_is_read(tmp_path):
    """Behind it, the file holds a preview."""
    picture = Image.fromarray(SMOOTH)
    picture.save(tmp_path / "image.jpg", "MPO", save_all=True, append_images=[picture.resize((8, 6))], quality=100)
    with Image.open(tmp_path / "image.jpg") as stored:
        assert stored.format == "MPO"
    np.testing.assert_allclose(read_image(tmp_path / "image.jpg"), SMOOTH, atol=2)


def test_colour_and_bilevel(tmp_path):
    Image.fromarray(np.array([[[30, 60, 90]]], dtype=np.uint8)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), [[54]])  # 8.97 + 35.22 + 10.26
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png"), [[255, 0]])


def test_jpeg_orientation_is_applied(tmp_path):
    picture = Image.fromarray(SMOOTH)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    picture.save(tmp_path / "image.jpg", quality=100, exif=exif)
    found = read_radiograph(tmp_path / "image.jpg")
    assert (found.width, found.height) == (60, 80)
    np.testing.assert_allclose(found.pixels, np.rot90(SMOOTH, -1), atol=3)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_scaled_decoding_changes_little_and_keeps_the_size(tmp_path, mode):
    coarse = np.random.default_rng(0).integers(0, 256, (12, 9)).astype(np.uint8)
    big = Image.fromarray(coarse).resize((900, 1200), Image.Resampling.BICUBIC).convert(mode)
    big.save(tmp_path / "big.jpg", quality=95)
    full = read_radiograph(tmp_path / "big.jpg")
    scaled = read_radiograph(tmp_path / "big.jpg", longer_side=128)
    assert full.pixels.shape == (1200, 900)
    assert scaled.pixels.shape == (300, 225)  # a quarter: the smallest that is not below 2 * 128
    assert (scaled.width, scaled.height) == (full.width, full.height) == (900, 1200)
    difference = resize_longer_side(full.pixels, 128).astype(int) - resize_longer_side(scaled.pixels, 128)
    assert np.abs(difference).max() <= 2
    assert np.abs(difference).mean() < 0.3


def test_damaged_files_say_why(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    frames = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    for name, damaged in (
        ("empty.jpg", b""),
        ("cut.jpg", content[: len(content) // 2]),
        ("text.png", b"not an image"),
        ("text.dcm", b"not an image" * 20),
        ("zeros.jpg", b"\0" * 1000),
    ):
        (tmp_path / name).write_bytes(damaged)
    for name, reason in (
        ("empty.jpg", "empty file"),
        ("cut.jpg", "(?i)truncated"),
        ("text.png", "no image of a known kind"),
        ("text.dcm", "no pixel data|cannot be decoded"),
        ("zeros.jpg", "no image of a known kind"),
        ("two.tif", "2 frames"),
        ("float.tif", "floating point"),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path / "folder.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png")


# --- DICOM -------------------------------------------------------------------------------------------------------


def test_8_bit_dicom_is_read_as_it_is_and_names_its_view(tmp_path):
    write_dicom(tmp_path / "image.dcm", SMOOTH, view="AP")
    found = read_radiograph(tmp_path / "image.dcm")
    np.testing.assert_array_equal(found.pixels, SMOOTH)
    assert (found.view, found.width, found.height) == ("AP", 80, 60)


def test_dicom_without_suffix_is_recognised(tmp_path):
    write_dicom(tmp_path / "image", SMOOTH)
    np.testing.assert_array_equal(read_image(tmp_path / "image"), SMOOTH)


def test_monochrome1_is_inverted(tmp_path):
    write_dicom(tmp_path / "image.dcm", SMOOTH, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(tmp_path / "image.dcm"), 255 - SMOOTH)


def test_7_bit_dicom_uses_its_full_range(tmp_path):
    write_dicom(tmp_path / "image.dcm", np.array([[0, 127]], dtype=np.uint8), BitsStored=7)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 255]], atol=1e-4)


def test_12_bit_without_window_goes_from_smallest_to_largest(tmp_path):
    write_dicom(tmp_path / "image.dcm", np.array([[1000, 1510, 2020]], dtype=np.uint16), BitsStored=12)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 127.5, 255]], atol=1e-4)


def test_constant_deep_image_is_black(tmp_path):
    write_dicom(tmp_path / "image.dcm", np.full((2, 2), 700, dtype=np.uint16), BitsStored=12)
    np.testing.assert_array_equal(read_image(tmp_path / "image.dcm"), np.zeros((2, 2)))


def test_overlay_in_unused_bits_is_cleared(tmp_path):
    values = np.array([[0, 255 | 0xF000, 510]], dtype=np.uint16)
    write_dicom(tmp_path / "image.dcm", values, BitsStored=12)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 127.5, 255]], atol=1e-4)


def test_blank_rescale_is_none(tmp_path):
    values = np.array([[0, 2048, 4095]], dtype=np.uint16)
    write_dicom(tmp_path / "blank.dcm", values, BitsStored=12, RescaleSlope=None, RescaleIntercept=None)
    np.testing.assert_allclose(read_image(tmp_path / "blank.dcm"), values * (255 / 4095), atol=1e-3)


def test_signed_values_with_rescale_and_window(tmp_path):
    # Values 2 * stored + 100 = [-100, 0, 50, 100, 300]; window centre 50.5, width 101 shows 0 ... 100.
    stored = np.array([[-100, -50, -25, 0, 100]], dtype=np.int16)
    tags = {"RescaleSlope": "2", "RescaleIntercept": "100", "WindowCenter": "50.5", "WindowWidth": "101"}
    write_dicom(tmp_path / "image.dcm", stored, **tags)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 0, 127.5, 255, 255]], atol=1e-3)


def test_signed_12_bit_values_keep_their_sign(tmp_path):
    stored = np.array([[-2048, 0, 2047]], dtype=np.int16) & np.int16(0x0FFF)  # high bits lost, as some files have it
    write_dicom(tmp_path / "image.dcm", stored, BitsStored=12)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 2048 / 4095 * 255, 255]], atol=1e-3)


def test_first_of_several_windows(tmp_path):
    values = np.array([[0, 10, 20, 1000]], dtype=np.uint16)
    write_dicom(tmp_path / "image.dcm", values, WindowCenter=["10.5", "500"], WindowWidth=["21", "1000"])
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 127.5, 255, 255]], atol=1e-3)


def test_window_then_inversion(tmp_path):
    values = np.array([[0, 10, 20, 1000]], dtype=np.uint16)
    tags = {"WindowCenter": "10.5", "WindowWidth": "21", "PhotometricInterpretation": "MONOCHROME1"}
    write_dicom(tmp_path / "image.dcm", values, **tags)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[255, 127.5, 0, 0]], atol=1e-3)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", [0, 127.5 - 255 / 39 * 0.5 + 255 / 39 * 1, 255]),
        ("LINEAR_EXACT", [0, 127.5, 255]),
        ("SIGMOID", [255 / (1 + np.e**2), 127.5, 255 / (1 + np.e**-2)]),
    ],
)
def test_window_functions(tmp_path, function, expected):
    values = np.array([[0, 20, 40]], dtype=np.uint16)
    tags = {"WindowCenter": "20", "WindowWidth": "40", "VOILUTFunction": function}
    write_dicom(tmp_path / "image.dcm", values, **tags)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [expected], atol=1e-3)


@pytest.mark.parametrize("width", ["0", "-5", ""])
def test_unusable_window_is_ignored(tmp_path, width):
    values = np.array([[100, 200, 300]], dtype=np.uint16)
    write_dicom(tmp_path / "image.dcm", values, WindowCenter="5", WindowWidth=width)
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 127.5, 255]], atol=1e-3)


def test_voi_table(tmp_path):
    dataset = write_dicom(tmp_path / "image.dcm", np.array([[0, 1, 2, 3]], dtype=np.uint16), BitsStored=12)
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.LUTData = [0, 30, 60, 255]
    dataset.VOILUTSequence = [table]
    dataset["VOILUTSequence"].value[0]["LUTDescriptor"].VR = "US"
    dataset["VOILUTSequence"].value[0]["LUTData"].VR = "US"
    save_dicom(dataset, tmp_path / "image.dcm")
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[0, 30, 60, 255]], atol=1e-3)


def test_padding_is_black_and_outside_the_range(tmp_path):
    values = np.array([[0, 1000, 1500, 2000]], dtype=np.uint16)
    for interpretation, expected in (("MONOCHROME2", [0, 0, 127.5, 255]), ("MONOCHROME1", [0, 255, 127.5, 0])):
        dataset = write_dicom(tmp_path / "image.dcm", values, PhotometricInterpretation=interpretation)
        dataset.add_new(0x00280120, "US", 0)
        save_dicom(dataset, tmp_path / "image.dcm")
        np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [expected], atol=1e-3)


def test_colour_dicom_becomes_luminance(tmp_path):
    write_dicom(tmp_path / "image.dcm", np.array([[[30, 60, 90], [255, 255, 255]]], dtype=np.uint8))
    np.testing.assert_allclose(read_image(tmp_path / "image.dcm"), [[54.45, 255]], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_run_length(tmp_path, dtype):
    values = np.add.outer(np.arange(20), np.arange(30)).astype(dtype) - (5 if dtype == np.int16 else 0)
    dataset = write_dicom(tmp_path / "plain.dcm", values)
    dataset.compress(RLELossless, generate_instance_uid=False)
    save_dicom(dataset, tmp_path / "run.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "run.dcm"), read_image(tmp_path / "plain.dcm"))
    assert read_image(tmp_path / "plain.dcm").std() > 5


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.int16, 16)])
def test_jpeg_2000(tmp_path, dtype, bits):
    values = np.random.default_rng(0).integers(0, 2**bits // 2, (64, 48)).astype(dtype)
    values -= dtype(50) if dtype == np.int16 else dtype(0)
    dataset = write_dicom(tmp_path / "plain.dcm", values, BitsStored=bits)
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    save_dicom(dataset, tmp_path / "wavelet.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "wavelet.dcm"), read_image(tmp_path / "plain.dcm"))


def test_jpeg_baseline_and_deflated(tmp_path):
    dataset = write_dicom(tmp_path / "plain.dcm", SMOOTH)
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, "JPEG", quality=100)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    save_dicom(dataset, tmp_path / "jpeg.dcm")
    np.testing.assert_allclose(read_image(tmp_path / "jpeg.dcm"), SMOOTH, atol=2)
    dataset = write_dicom(tmp_path / "plain.dcm", SMOOTH)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save_dicom(dataset, tmp_path / "deflated.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "deflated.dcm"), SMOOTH)


def test_unusable_dicom_files_say_why(tmp_path):
    two = np.zeros((2, 4, 4), dtype=np.uint8)
    dataset = write_dicom(tmp_path / "frames.dcm", two[0])
    dataset.NumberOfFrames = 2
    dataset.PixelData = two.tobytes()
    save_dicom(dataset, tmp_path / "frames.dcm")
    dataset = write_dicom(tmp_path / "header.dcm", SMOOTH)
    del dataset.PixelData
    save_dicom(dataset, tmp_path / "header.dcm")
    write_dicom(tmp_path / "cut.dcm", SMOOTH)
    content = (tmp_path / "cut.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[:-2000])
    dataset = write_dicom(tmp_path / "lossless.dcm", SMOOTH)
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    save_dicom(dataset, tmp_path / "lossless.dcm")
    write_dicom(tmp_path / "odd.dcm", SMOOTH, PhotometricInterpretation="HSV")
    for name, reason in (
        ("frames.dcm", "2 frames"),
        ("header.dcm", "no pixel data"),
        ("cut.dcm", "cannot be decoded"),
        ("lossless.dcm", "JPEG Lossless"),
        ("odd.dcm", "HSV|cannot be decoded"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)


# --- real files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pydicom-data_RG1_J2KI_chestPA_15bit.dcm", (1841, 1955)),
        ("nih_00001582_021_1024px.png", (1024, 1024)),
        ("kermany_NORMAL2-IM-1427-0001.jpeg", None),
        ("hannover_fff13f3a.png", None),
        ("cohen_ccby4_12941_2020_358_Fig1_HTML.jpg", None),
    ],
)
def test_real_files(shared_dir, tmp_path, name, size):
    found = read_radiograph(shared_dir / "realdata/raw_samples" / name, longer_side=256)
    assert size is None or (found.width, found.height) == size
    small = resize_longer_side(found.pixels, 256)
    assert max(small.shape) == 256
    assert small.shape[1] / small.shape[0] == pytest.approx(found.width / found.height, abs=0.01)
    assert 30 < small.mean() < 225
    assert small.std() > 25
    write_image(tmp_path / "out.jpg", small)
    assert np.abs(read_image(tmp_path / "out.jpg").astype(int) - small).mean() < 2


def test_real_monochrome1_dicom_is_shown_with_bright_bones(shared_dir):
    path = shared_dir / "realdata/raw_samples/pydicom-data_RG1_J2KI_chestPA_15bit.dcm"
    assert pydicom.dcmread(path).PhotometricInterpretation == "MONOCHROME1"
    image = resize_longer_side(read_image(path), 256).astype(float)
    rows, columns = image.shape
    spine = image[rows // 2 : 3 * rows // 4, columns * 9 // 20 : columns * 11 // 20].mean()
    lungs = image[rows * 2 // 5 : rows // 2, columns // 5 : columns * 3 // 10].mean()
    assert spine > lungs + 30


# --- resizing, writing -------------------------------------------------------------------------------------------


def area_mean_by_loop(image, rows, columns):
    """Average of the covered area, one new pixel and one old pixel at a time."""
    height, width = image.shape
    result = np.zeros((rows, columns))
    for r in range(rows):
        for c in range(columns):
            top, bottom = r * height / rows, (r + 1) * height / rows
            left, right = c * width / columns, (c + 1) * width / columns
            total = 0.0
            for y in range(height):
                for x in range(width):
                    down = max(0.0, min(bottom, y + 1) - max(top, y))
                    across = max(0.0, min(right, x + 1) - max(left, x))
                    total += image[y, x] * down * across
            result[r, c] = total / ((bottom - top) * (right - left))
    return result


@pytest.mark.parametrize(("shape", "size"), [((13, 9), 8), ((7, 20), 6), ((16, 16), 4), ((11, 10), 10), ((40, 3), 5)])
def test_shrinking_is_the_exact_area_mean(shape, size):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    small = resize_longer_side(image, size)
    expected = area_mean_by_loop(image.astype(float), *small.shape)
    assert max(small.shape) == size
    assert np.abs(small - expected).max() <= 0.5 + 1e-3


def test_enlarging_and_keeping():
    image = np.array([[0, 100], [0, 100]], dtype=np.uint8)
    large = resize_longer_side(image, 8)
    assert large.shape == (8, 8)
    assert (np.diff(large[0].astype(int)) >= 0).all()
    assert (large.min(), large.max()) == (0, 100)
    assert resize_longer_side(image, 2) is image
    np.testing.assert_array_equal(resize_longer_side(np.array([[1.4, 300.0]], dtype=np.float32), 2), [[1, 255]])


def test_a_side_never_vanishes():
    assert resize_longer_side(np.zeros((1, 500), dtype=np.uint8), 64).shape == (1, 64)
    with pytest.raises(ValueError, match="size"):
        resize_longer_side(np.zeros((2, 2), dtype=np.uint8), 0)


def test_writing(tmp_path):
    write_image(tmp_path / "deep/image.png", SMOOTH)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep/image.png")), SMOOTH)
    write_image(tmp_path / "image.jpg", SMOOTH)
    with Image.open(tmp_path / "image.jpg") as picture:
        assert (picture.mode, picture.format, picture.quantization[0][0]) == ("L", "JPEG", 2)  # 16 at quality 95
    assert sorted(item.name for item in tmp_path.iterdir()) == ["deep", "image.jpg"]
    for path, image in (("a.gif", SMOOTH), ("a.jpg", SMOOTH.astype(float)), ("a.jpg", SMOOTH[None])):
        with pytest.raises(ValueError, match=r"expected uint8|\.jpg or"):
            write_image(tmp_path / path, image)


def test_values_in_the_high_bits(tmp_path):
    values = np.array([[0, 300, 4095]])
    pixels = (values << 4 | 7).astype(np.uint16)  # what lies below does not count
    write_dicom(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=15)
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm"), values * 255 / 4095, atol=1e-3)


def test_a_palette_becomes_grey(tmp_path):
    """Four entries of 8 bits: black, pure green, white, pure red."""
    tables = {"Red": (0, 0, 255, 255), "Green": (0, 255, 255, 0), "Blue": (0, 0, 255, 0)}
    tags = {f"{name}PaletteColorLookupTableDescriptor": [4, 0, 8] for name in tables}
    tags |= {f"{name}PaletteColorLookupTableData": bytes(values) for name, values in tables.items()}
    pixels = np.array([[0, 1, 2, 3]], np.uint8)
    write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="PALETTE COLOR", **tags)
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm"), [[0, 0.587 * 255, 255, 0.299 * 255]], atol=0.6)
