"""Reading and resizing image files.

The content of a file decides its format, not its suffix.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
GRAY_MODES = ("L", "I", "I;16", "I;16B", "I;16L", "F")


def read_image(path, channels=3, content=None, turn=True):
    """Reads a photo, rotated by its EXIF orientation.

    Alpha is dropped, palettes become their colors, gray is repeated to three channels, and
    color becomes gray by luma (0.299 red, 0.587 green, 0.114 blue).

    Args:
        path: a PNG, JPEG, TIFF, BMP, WebP or GIF file.
        channels: int, 3 (RGB) or 1 (gray).
        content: bytes of the file, or None to read them; then `path` is only for errors.
        turn: bool, whether the EXIF orientation counts.

    Returns:
        `(height, width, channels)`, uint8, or uint16 if the file has 16 bits per channel.

    Raises:
        ValueError: if the file is not such an image, is truncated, is too large to be a photo, has
            several pages, or holds 32-bit numbers.
    """
    pixels, _ = decode(path, content, turn)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path}: an image of {pixels.dtype} numbers; expected 8 or 16 bits per channel. "
            "Scale it and save it again"
        )
    return to_channels(pixels, channels)


def read_mask(path, content=None):
    """Reads the labels or the colors of a mask.

    Args:
        path: a PNG, TIFF, BMP, WebP or GIF file.
        content: as in `read_image`.

    Returns:
        Integers `(height, width)` for a gray or palette file (the palette's indices), or uint8
        or uint16 `(height, width, 3)` for a color file; and whether it has one bit per pixel.

    Raises:
        ValueError: as `read_image`, and if the file is a JPEG.
    """
    pixels, mode = decode(path, content, turn=False, mask=True)
    if pixels.dtype.kind == "f":
        raise ValueError(f"{path}: a mask of {pixels.dtype} numbers; expected whole label ids")
    return pixels, mode == "1"


def read_size(path, turn=True):
    """Returns `(height, width)` of an image file, of which only the header is read.

    Args:
        path: the file.
        turn: bool, whether the EXIF orientation counts.
    """
    with Image.open(path, formats=FORMATS) as image:
        # PNG's own `getexif` would decode the pixels.
        exif = Image.Image.getexif(image)
        across = turn and exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size if across else image.size[::-1]


def decode(path, content=None, turn=True, mask=False):
    """Returns the pixels of a file, `(height, width)` or RGB, and Pillow's name of its mode."""
    data = Path(path).read_bytes() if content is None else content
    if not data:
        raise ValueError(f"{path}: the file is empty; expected an image")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            mode, file_format = image.mode, image.format
            frames = getattr(image, "n_frames", 1)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            sixteen_bit_color = has_sixteen_bit_color(image, data)
            image.load()  # raises if the file is truncated
            pixels = to_array(ImageOps.exif_transpose(image) if turn else image, mask)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the image is too large to be read safely: {error}") from error
    except Exception as error:  # Pillow's errors for damaged files have no common type
        # Pillow's own words name an object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it begins as no image does" if unknown else error
        raise ValueError(
            f"{path}: cannot be read as an image, it is damaged, cut short or of another type "
            f"({reason}); expected PNG, JPEG, TIFF, BMP, WebP or GIF"
        ) from error
    if mask and file_format in ("JPEG", "MPO"):
        raise ValueError(f"{path}: the mask is a JPEG, which alters label ids; save it as PNG")
    # Cameras write MPO: a JPEG with a preview or a second view behind it.
    if frames > 1 and file_format != "MPO":
        raise ValueError(f"{path}: {frames} pages or frames in one file; expected one image")
    if sixteen_bit_color:
        if orientation != 1 and turn:
            raise ValueError(
                f"{path}: a 16-bit color image with EXIF orientation {orientation}, which is "
                "not supported; turn the pixels and save it again"
            )
        pixels = decode_sixteen_bit_color(path, data, gray=mode.startswith("L"))
    return pixels, mode


def to_array(image, mask):
    """Returns the pixels of a Pillow image without alpha, `(height, width)` or RGB."""
    if image.mode in ("P", "PA") and mask:
        return np.array(image.getchannel(0))  # the indices
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    if image.mode in GRAY_MODES:
        pixels = np.array(image)
        return pixels.astype(pixels.dtype.newbyteorder("="))
    return np.array(image.convert("RGB"))


def has_sixteen_bit_color(image, data):
    """Whether a file has several channels of 16 bits, which Pillow would cut to 8."""
    if image.format == "PNG":
        # Byte 24 is the bit depth, byte 25 the color type: 2 RGB, 4 gray + alpha, 6 RGBA.
        return data[24] == 16 and data[25] in (2, 4, 6)
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (8,))  # BitsPerSample
        return len(bits) > 1 and bits[0] == 16
    return False


def decode_sixteen_bit_color(path, data, gray):
    """Decodes with OpenCV what Pillow has checked but cannot hold: uint16."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError(f"{path}: cannot be read as a 16-bit image; save it as PNG")
    pixels = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)
    return pixels[..., 0] if gray else pixels


def to_channels(image, channels):
    """Returns an image `(height, width)`, or with 1 or 3 channels, with `channels` channels.

    Gray is repeated, color becomes gray by luma. The type, uint8, uint16 or float32, is kept.
    """
    if image.ndim == 2:
        image = image[..., None]
    if channels == 1 and image.shape[-1] == 3:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None]
    if channels == 3 and image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    return np.ascontiguousarray(image)


def resize_image(image, size):
    """Resizes `(height, width, channels)`: area when shrinking, bilinear when enlarging."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=way)
    return resized.reshape(height, width, image.shape[2])


def resize_mask(mask, size):
    """Resizes `(height, width)` to the label at the center of each new pixel."""
    if mask.shape == tuple(size):
        return mask
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def to_float(image):
    """Returns uint8, uint16 or floats as float32 in [0, 1]; float32 is not copied."""
    if image.dtype.kind == "f":
        return image.astype(np.float32, copy=False)
    return np.divide(image, np.iinfo(image.dtype).max, dtype=np.float32)
