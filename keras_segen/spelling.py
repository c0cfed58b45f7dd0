"""What a misspelled name was meant to be."""

import difflib


def did_you_mean(word, words):
    """Asks whether the nearest of some words is meant, or returns `""` if none is near.

    Args:
        word: what was written.
        words: the names that there are; a dict says how each is to be written.

    Example:

    >>> did_you_mean("unett", ["unet", "fcn"])
    ' Did you mean unet?'
    """
    near = difflib.get_close_matches(str(word), list(words), n=1)
    if not near:
        return ""
    return f" Did you mean {words[near[0]] if isinstance(words, dict) else near[0]}?"
