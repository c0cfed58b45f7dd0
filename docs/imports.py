"""Draws which room imports which: `python docs/imports.py` renews the diagram in architecture.md.

It ends with an error if an import leads up the stairs, or leads around in a circle.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "keras_segen"
PAGE = ROOT / "docs" / "architecture.md"

# From the top of the stairs to the bottom. A room imports from those below it, and from the small
# files (`frameworks`, `files`, `machine`, …), which import no room.
STAIRS = (
    ("cli",),
    ("bench",),
    ("compare",),
    ("runs",),
    ("tasks",),
    ("generation",),
    ("segmentation",),
    ("metrics",),
    ("data",),
    ("losses", "report"),
    ("backend", "plot"),
)
STEP = {room: step for step, rooms in enumerate(STAIRS) for room in rooms}


def imports(root=ROOT / PACKAGE):
    """Returns who imports whom: set of `(room, room, "file:line")`, imports in functions too."""
    found = set()
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                inside = node.module.split(".")[1:]
                names = inside[:1] or [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                parts = (alias.name.split(".") for alias in node.names)
                names = [part[1] for part in parts if part[0] == PACKAGE and len(part) > 1]
            where = f"{path.relative_to(root.parent)}:{node.lineno}" if names else ""
            found |= {(room, name, where) for name in names if name != room}
    return found


def upwards(found):
    """Returns the imports that do not lead down the stairs, in words."""
    lowest = len(STAIRS)
    return sorted(
        f"{where}: {room} imports {other}"
        for room, other, where in found
        if room not in ("__init__", "__main__")
        and (other in STEP and STEP[other] <= STEP.get(room, lowest))
    )


def diagram(found):
    """Returns the imports between rooms as a Mermaid diagram."""
    pairs = {(room, other) for room, other, _ in found if room in STEP and other in STEP}
    lines = ["flowchart TD"]
    lines += [f"    {' & '.join(rooms)}" for rooms in STAIRS]
    lines += [f"    {room} --> {other}" for room, other in sorted(pairs, key=_order)]
    return "\n".join(lines)


def _order(pair):
    return STEP[pair[0]], pair[0], STEP[pair[1]], pair[1]


def main():
    found = imports()
    wrong = upwards(found)
    if wrong:
        sys.exit("An import leads up the stairs:\n" + "\n".join(wrong))
    text = PAGE.read_text(encoding="utf-8")
    drawn = f"```mermaid\n{diagram(found)}\n```"
    PAGE.write_text(re.sub(r"```mermaid\n.*?\n```", drawn, text, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
