"""The site: `make docs` builds it from the README, these pages and the docstrings.

Sources are read where they are, so that a link that works in a checkout works here too.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference  # noqa: E402  (docs/reference.py)

from keras_segen import __version__  # noqa: E402

project = "keras-segen"
release = __version__
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "docs/api/*.md"]
exclude_patterns = [".*", "build", "runs", "tests", "notebooks", "keras_segen"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # options begin with two dashes
highlight_language = "none"  # most blocks are commands
html_theme = "furo"
html_title = f"keras-segen {release}"
html_copy_source = html_show_sphinx = False

GUIDES = (
    "data",
    "segmentation",
    "instances",
    "generation",
    "run_folder",
    "comparison",
    "measurements",
)
HOUSE = ("docs/architecture", "docs/upstream", "CONTRIBUTING", "CHANGELOG")


def contents(caption, names):
    """The Markdown of a part of the menu."""
    lines = "\n".join(names)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def complete(app, name, source):
    """Adds what no file says: the menu to the README, and the docstrings to the reference."""
    if name == root_doc:
        guides = [f"docs/{each}" for each in GUIDES]
        guides += [
            f"docs/{each}" for each in ("first_hour",) if (ROOT / f"docs/{each}.md").exists()
        ]
        rooms = [f"docs/api/{each.stem}" for each in sorted((ROOT / "docs" / "api").glob("*.md"))]
        source[0] += contents("Guides", guides) + contents("Reference", rooms)
        source[0] += contents("The project", HOUSE)
    elif name.startswith("docs/api/"):
        source[0] += reference.page(name.rpartition("/")[2])
    elif name == "docs/architecture":  # GitHub draws the diagram; here its source is to be read
        source[0] = source[0].replace("```mermaid", "```text")


def make_index(app, error):
    """Copies the first page to where web servers look for it."""
    if error is None:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app):
    app.connect("source-read", complete)
    app.connect("build-finished", make_index)
