"""Earlier results of benchmarks in a folder."""

import json
from pathlib import Path


def find_earlier(folder, pattern, settings, figures, command):
    """Finds the latest result with the same settings in a folder.

    Args:
        folder: path; it need not exist.
        pattern: str, a pattern of the names of such results, which sort by time.
        settings: dict of plain values, as under `"settings"` in a result.
        figures: callable from a result, a dict, to a dict of the figures to compare.
        command: str, the command that writes such results, for the error.

    Returns:
        Dict with `time` and `versions` of the result and what `figures` returned, or None.

    Raises:
        ValueError: a file with the name of a result is not one.
    """
    found = None
    for path in sorted(Path(folder).glob(pattern)):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["settings"] != settings:
                continue
            found = {"time": result["time"], "versions": result["versions"], **figures(result)}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} has the name of a result of `{command}`, but is none ({error!r}): "
                "move it away, or name another folder."
            ) from None
    return found
