"""Colors of classes that bring none."""

import numpy as np


def distinct_palette(num_classes):
    """Returns the first colors of the PASCAL VOC palette, uint8 `(num_classes, 3)`, RGB.

    The bits of the class's number are dealt to red, green and blue, the highest first, so that
    no two of 256 colors are equal.
    """
    palette = np.zeros((num_classes, 3), np.uint8)
    for index in range(num_classes):
        for bit in range(8):
            palette[index, bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return palette
