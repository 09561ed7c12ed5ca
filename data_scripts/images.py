"""Decoding and resizing of radiographs: JPEG, PNG and DICOM in, 8-bit grey images out.

Every prepare script goes through :func:`read_image`, :func:`resize_longer_side` and :func:`write_image`, so that a
pixel means the same in all prepared datasets: 0 is black, 255 is white, dense tissue is bright.

Codecs: Pillow decodes JPEG baseline, ``pylibjpeg-openjpeg`` (MIT) JPEG 2000, pydicom run-length and deflated data.
Lossless JPEG (processes 14) and JPEG-LS need a further plugin of pydicom, for example ``python-gdcm``; without one
such a file is reported as unreadable, with the name of its transfer syntax.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit
from scipy import sparse

DICOM_SUFFIXES = (".dcm", ".dicom")
JPEG_QUALITY = 95

# Of several installed plugins the first listed decodes, so that a further installed one changes no pixel.
_PLUGINS = {
    JPEGBaseline8Bit: ("pillow",),
    JPEGExtended12Bit: ("pillow", ""),
    JPEG2000: ("pylibjpeg", "pillow"),
    JPEG2000Lossless: ("pylibjpeg", "pillow"),
}
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's "L"


class ImageError(ValueError):
    """An image cannot be used; the message says why, without the path."""


@dataclass(frozen=True)
class Radiograph:
    """One decoded image.

    Attributes:
        pixels: ``(H, W)``, uint8 for 8-bit sources, else float32 in [0, 255].
        width: Width in the file, in pixels; larger than ``W`` after scaled decoding.
        height: Height in the file, in pixels.
        view: ``ViewPosition`` of a DICOM file, upper case; ``""`` elsewhere.
    """

    pixels: np.ndarray
    width: int
    height: int
    view: str = ""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a radiograph at full size as grey values.

    Args:
        path: A JPEG, PNG, BMP, TIFF or DICOM file.

    Returns:
        ``(H, W)``, uint8 for 8-bit sources, else float32 in [0, 255]; see :func:`read_radiograph`.

    Raises:
        ImageError: the file is no image, truncated, of several frames, or of an unsupported kind.
        FileNotFoundError: there is no such file.
    """
    return read_radiograph(path).pixels


def read_radiograph(path: str | os.PathLike[str], *, longer_side: int | None = None) -> Radiograph:
    """Read a radiograph, if wanted no larger than needed to be resized to ``longer_side``.

    Colour becomes luminance, transparency is laid on black. 16-bit PNG values are divided by 257. DICOM values go
    through modality rescale, VOI table or window (the first of several) and photometric inversion.

    Args:
        path: A JPEG, PNG, BMP, TIFF or DICOM file.
        longer_side: When given, a JPEG that is at least four times as large is decoded at 1/2, 1/4 or 1/8 of its
            size, but never below twice ``longer_side``. This makes full-size JPEGs several times faster to read.

    Raises:
        ImageError: the file is no image, truncated, of several frames, or of an unsupported kind.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
    except IsADirectoryError:
        raise ImageError("is a folder, not an image") from None
    if not start:
        raise ImageError("is an empty file")
    try:
        if start[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES:
            return _read_dicom(path)
        return _read_picture(path, longer_side)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("is too large for the memory of this computer") from None
    except UnidentifiedImageError:
        raise ImageError("is no image of a known kind") from None
    except Exception as error:  # codecs raise whatever they like on damaged files, SyntaxError included
        raise ImageError(f"cannot be decoded ({_one_line(error)})") from error


def resize_longer_side(image: np.ndarray, size: int) -> np.ndarray:
    """Resize so that the longer side is ``size`` pixels, keeping the aspect.

    Shrinking averages exactly over the area that a new pixel covers, parts of pixels included (as ``INTER_AREA``
    of OpenCV, which upstream MGCA uses); enlarging is bilinear. Sides are rounded to at least 1 pixel.

    Args:
        image: ``(H, W)`` grey values in [0, 255].
        size: Longer side of the result, at least 1.

    Returns:
        uint8 ``(H', W')`` with ``max(H', W') == size``.

    >>> resize_longer_side(np.array([[0, 100, 200, 255], [0, 100, 200, 255]], dtype=np.uint8), 2)
    array([[ 50, 228]], dtype=uint8)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    height, width = image.shape
    longer = max(height, width)
    target = (max(1, round(height * size / longer)), max(1, round(width * size / longer)))
    if longer < size:
        picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
        values = np.asarray(picture.resize(target[::-1], Image.Resampling.BILINEAR))
    elif longer > size:
        rows = _area_weights(height, target[0]) @ image.astype(np.float32)
        values = (_area_weights(width, target[1]) @ np.ascontiguousarray(rows.T)).T
    elif image.dtype == np.uint8:
        return image
    else:
        values = image
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def write_image(path: str | os.PathLike[str], image: np.ndarray, *, quality: int = JPEG_QUALITY) -> None:
    """Write 8-bit grey values as JPEG or PNG (by suffix), under a temporary name first.

    Whoever kills the process, or fills the disk, finds the whole file or none.

    Args:
        path: ``.jpg`` or ``.png``; its folder is made when missing.
        image: uint8 ``(H, W)``.
        quality: JPEG quality, 1 to 100.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"expected uint8 (H, W), got {image.dtype} {image.shape}")
    if path.suffix not in (".jpg", ".png"):
        raise ValueError(f"{path}: use .jpg or .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    content = io.BytesIO()  # Pillow's own way to a file does not notice when a JPEG does not fit on the disk
    if path.suffix == ".jpg":
        Image.fromarray(image).save(content, "JPEG", quality=quality)
    else:
        Image.fromarray(image).save(content, "PNG")
    try:
        temporary.write_bytes(content.getbuffer())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read_picture(path: Path, longer_side: int | None) -> Radiograph:
    with Image.open(path) as picture:
        # Telephones write JPEG with further pictures, such as previews, behind the first; Pillow calls it MPO.
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            raise ImageError(f"has {picture.n_frames} frames, expected one")
        width, height = picture.size
        if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
            # "L" takes the luminance channel as stored; the size is a lower bound for scaled decoding.
            shrink = longer_side is not None and max(width, height) >= 4 * longer_side
            factor = 2 * longer_side / max(width, height) if shrink else 1.0
            picture.draft("L", (int(np.ceil(width * factor)), int(np.ceil(height * factor))))
        picture.load()
        if picture.getexif().get(0x0112, 1) != 1:  # orientation, as a photographed film may have
            turned = ImageOps.exif_transpose(picture)
            if (turned.width > turned.height) != (picture.width > picture.height):
                width, height = height, width
            picture = turned
        return Radiograph(pixels=_grey(picture), width=width, height=height)


def _grey(picture: Image.Image) -> np.ndarray:
    """Return the picture as uint8 or, for 16-bit sources, as float32 in [0, 255]."""
    if picture.mode.startswith("I"):  # I;16, I;16B and, for some 16-bit files, I
        values = np.asarray(picture).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("has values outside 16 bit")
        return values / 257.0
    if picture.mode == "F":
        raise ImageError("holds floating point values, which have no defined black and white")
    if picture.mode in ("P", "PA", "RGBA", "LA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture).convert("RGB")
    return np.asarray(picture if picture.mode == "L" else picture.convert("RGB").convert("L"))


def _read_dicom(path: Path) -> Radiograph:
    dataset = pydicom.dcmread(path, force=path.suffix.lower() in DICOM_SUFFIXES)
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in dataset and dataset[name].is_empty:  # pydicom would calculate with it
            del dataset[name]
    if "PixelData" not in dataset:
        raise ImageError("holds no pixel data (not a DICOM image, or cut off before its pixels)")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(f"has {frames} frames, expected one")
    view = str(dataset.get("ViewPosition") or "").strip().upper()
    if getattr(dataset, "file_meta", None) is None or "TransferSyntaxUID" not in dataset.file_meta:
        raise ImageError("names no transfer syntax")
    stored = _stored_values(dataset)
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        stored = stored.astype(np.float32) / (257.0 if stored.dtype == np.uint16 else 1.0)
        pixels = stored[..., :3] @ _LUMINANCE
    elif stored.ndim == 3:
        limit = float(2 ** int(dataset.BitsStored) - 1)
        pixels = (stored.astype(np.float32) * np.float32(255 / limit)) @ _LUMINANCE
    elif interpretation in ("MONOCHROME1", "MONOCHROME2"):
        pixels = _display_values(stored, dataset, inverted=interpretation == "MONOCHROME1")
    else:
        raise ImageError(f"has the unsupported photometric interpretation {interpretation}")
    height, width = pixels.shape
    return Radiograph(pixels=pixels, width=width, height=height, view=view)


def _stored_values(dataset: pydicom.Dataset) -> np.ndarray:
    """Decode ``(H, W)`` or ``(H, W, 3)`` stored values with unused high bits cleared."""
    syntax = dataset.file_meta.TransferSyntaxUID
    failure: Exception | None = None
    for plugin in _PLUGINS.get(syntax, ("",)):
        try:
            # Unused bits are cleared below: pydicom takes the lowest bits, wherever HighBit says that the values lie.
            values = pixel_array(dataset, decoding_plugin=plugin, correct_unused_bits=False)
            break
        except Exception as error:  # the next plugin may be installed or may do better
            failure = failure or error
    else:
        raise ImageError(f"cannot be decoded: {syntax.name} ({_one_line(failure)})") from failure
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if values.ndim == 3 or bits >= allocated or values.dtype.kind not in "iu":
        return values
    # Old files keep overlays in the high bits, which would otherwise dominate the range.
    low = int(dataset.get("HighBit", bits - 1)) - (bits - 1)
    values = values.astype(np.int64) >> low & (1 << bits) - 1
    if int(dataset.PixelRepresentation):
        values = np.where(values >> (bits - 1) & 1, values - (1 << bits), values)
    return values


def _display_values(stored: np.ndarray, dataset: pydicom.Dataset, *, inverted: bool) -> np.ndarray:
    """Turn stored values of a monochrome image to display values in [0, 255], padding to 0.

    Without table and window, images of up to 8 bits are shown as stored and deeper ones from their smallest to
    their largest value.
    """
    padding = _padding(stored, dataset)
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2]) or 16
        display = apply_voi(values, dataset) * (255 / (2**bits - 1))
    elif (window := _window(dataset)) is not None:
        display = _apply_window(values, *window)
    elif _is_plain(dataset):
        if stored.dtype == np.uint8 and int(dataset.BitsStored) == 8 and padding is None:
            return 255 - stored if inverted else stored
        display = stored * (255 / (2 ** int(dataset.BitsStored) - 1))
    else:
        shown = values if padding is None or padding.all() else values[~padding]
        low, high = float(shown.min()), float(shown.max())
        display = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    display = np.clip(display, 0, 255)
    if inverted:
        display = 255 - display
    if padding is not None:
        display[padding] = 0
    return display.astype(np.float32)


def _padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Return where the image is padding rather than radiograph, or ``None`` when the file declares none."""
    first = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _is_plain(dataset: pydicom.Dataset) -> bool:
    """Whether stored values are unsigned, of at most 8 bits and not rescaled: grey values as they are."""
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    rescaled = float(1 if slope is None else slope) != 1 or float(intercept or 0) != 0
    unsigned = int(dataset.BitsStored) <= 8 and not int(dataset.PixelRepresentation)
    return unsigned and not rescaled and not dataset.get("ModalityLUTSequence")


def _window(dataset: pydicom.Dataset) -> tuple[float, float, str] | None:
    """Return (centre, width, function) of the first window, or ``None`` when there is no usable one."""
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None or not np.isfinite(centre) or not np.isfinite(width):
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        return None
    return centre, width, function


def _apply_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Apply a window as DICOM PS3.3 C.11.2.1.2 defines it, to the range [0, 255]."""
    if function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5) * 255
    if width == 1:
        return np.where(values <= centre - 0.5, 0.0, 255.0)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        return _first(value[0]) if len(value) else None
    return float(value)


def _area_weights(old: int, new: int) -> sparse.csr_array:
    """Return ``(new, old)`` weights that average ``old`` pixels into ``new <= old`` bins of equal width."""
    edges = np.arange(new + 1) * (old / new)
    first = edges[:-1].astype(np.int64)
    span = int(np.ceil(old / new)) + 1
    columns = first[:, None] + np.arange(span)
    covered = np.minimum(edges[1:, None], columns + 1) - np.maximum(edges[:-1, None], columns)
    keep = (covered > 1e-9) & (columns < old)
    rows = np.broadcast_to(np.arange(new)[:, None], columns.shape)
    weights = (covered[keep] * (new / old)).astype(np.float32)
    return sparse.csr_array((weights, (rows[keep], columns[keep])), shape=(new, old))


def _one_line(error: Exception | None) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
