"""What two models share and Keras lacks."""

import keras


def check_arguments(input_shape, num_classes, filters):
    """Checks the arguments of a network that halves its images from level to level.

    Args:
        input_shape: tuple `(height, width, channels)`; height and width may be None (any size).
        num_classes: int, channels of the output.
        filters: tuple of ints, channels per level: between two levels the images are halved.

    Raises:
        ValueError: when there are fewer than two levels, when a number is not positive, or when
            height or width cannot be halved often enough, or Keras is set to channels first.

    Example:

    >>> check_arguments((64, None, 3), num_classes=2, filters=(16, 32, 64))
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Keras is set to 'channels_first', and images here are (height, width, channels): call "
            "keras.config.set_image_data_format('channels_last'), or change ~/.keras/keras.json."
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer; found {num_classes}.")
    if len(filters) < 2 or not all(isinstance(f, int) and f > 0 for f in filters):
        raise ValueError(
            "filters gives the channels of each level: at least two positive integers, such as "
            f"(64, 128, 256); found {filters}."
        )
    too_small = any(size is not None and size < 1 for size in input_shape)
    if len(input_shape) != 3 or input_shape[2] is None or too_small:
        raise ValueError(
            "input_shape is (height, width, channels), positive integers without the batch; "
            f"height and width may be None; found {tuple(input_shape)}."
        )
    multiple = 2 ** (len(filters) - 1)
    padded = [size and -(-size // multiple) * multiple for size in input_shape[:2]]
    if padded != list(input_shape[:2]):
        raise ValueError(
            f"A network of {len(filters)} levels halves its images {len(filters) - 1} times, so "
            f"height and width must be multiples of {multiple}; found input_shape="
            f"{tuple(input_shape)}. Pad the images to {(*padded, input_shape[2])}, or use fewer "
            "filters."
        )
