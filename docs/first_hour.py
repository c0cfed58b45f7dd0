"""A stranger's first hour: runs every command of the README in order, in a fresh clone.

    python docs/first_hour.py                      # writes docs/first_hour.md
    python docs/first_hour.py --skip "make test"   # names it, and does not run it
    python docs/first_hour.py --redo "make test"   # once more, in the current commit

The clone, and what each command printed, are kept in build/first_hour: after an interruption the
same call goes on with the next command. `--again` begins anew. The exit status is 1 if a command
failed.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first_hour.md"
LINES = 12  # of an output that are shown at its beginning and at its end

# What a reader puts in place of the README's words, and what this script puts there.
STAND_INS = {
    "folder:PATH": "folder:photos",
    "PHOTO_OR_FOLDER": "photos/test/images",
    "--resume RUN": "--resume runs/unet-shapes-1",
}
PREPARED = """
from pathlib import Path

from PIL import Image

import keras_segen as ks

for split, length in (("train", 64), ("val", 16), ("test", 16)):
    scenes = ks.data.Shapes(split, size=64, length=length, seed=1)
    for kind in ("images", "masks"):
        Path("photos", split, kind).mkdir(parents=True, exist_ok=True)
    for i in range(length):
        image, mask = scenes[i]
        pixels = (image * 255).round().astype("uint8")
        Image.fromarray(pixels).save(f"photos/{split}/images/{i}.png")
        Image.fromarray(mask.astype("uint8")).save(f"photos/{split}/masks/{i}.png")

Path("lab.yaml").write_text("model: unet\\ndata: shapes\\nepochs: 5\\n")
model = ks.segmentation.unet((64, 64, 3), num_classes=6, filters=(8, 16, 32))
ks.initialize(model, seed=0)
model.save("mine.keras")
"""
# Before the command that begins so: what the reader has, and the README does not make.
BEFORE = {
    "keras-segen data folder:PATH": ("your images, lab.yaml and mine.keras", PREPARED),
    "keras-segen train --config lab.yaml": ("your images, lab.yaml and mine.keras", PREPARED),
    "keras-segen generate": (
        "a GAN to generate with",
        "keras-segen train dcgan --data shapes --image-size 32x32 --epochs 1 --run runs/dcgan",
    ),
}
OFFLINE = ("keras-segen datasets --download",)


def steps(text):
    """The README's code in order: list of `(heading, language, code)`, a line for a command."""
    found, heading = [], ""
    parts = re.split(r"^(## [^\n]*|```\w*\n.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    for part in parts:
        if part.startswith("## "):
            heading = part[3:]
        elif part.startswith("```python"):
            found.append((heading, "python", part.split("\n", 1)[1].removesuffix("```")))
        elif part.startswith("```\n"):
            found += [(heading, "console", line) for line in part.splitlines()[1:-1] if line]
    return found


def with_preparations(found):
    """Adds what `BEFORE` says, once: list of `(heading, language, code, what for)`."""
    complete, done = [], set()
    for heading, language, code in found:
        for start, (purpose, preparation) in BEFORE.items():
            if code.startswith(start) and purpose not in done:
                done.add(purpose)
                kind = "python" if "\n" in preparation else "console"
                complete.append((heading, kind, preparation, purpose))
        complete.append((heading, language, code, ""))
    return complete


def fill_in(code):
    """Puts something real in the place of the words that stand for a reader's own things."""
    for word, real in STAND_INS.items():
        code = code.replace(word, real)
    return code


def run(language, code, folder):
    """Runs code as a reader would: `(exit status, seconds, what it printed)`."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("KERAS", "PYTHON"))},
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder.parent / "home"),
        "KERAS_SEGEN_CACHE": str(folder.parent / "cache"),
        "MPLBACKEND": "agg",
    }
    Path(environment["HOME"]).mkdir(exist_ok=True)
    command = ["bash", "-c", fill_in(code)]
    if language == "python":
        (folder / "example.py").write_text(code, encoding="utf-8")
        command = ["python", "example.py"]
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, time.monotonic() - started, done.stdout


def shorten(text, folder):
    """An output as the page shows it: without this machine's paths, its middle left out."""
    text = text.replace(str(folder), "~/keras-segen").replace(str(folder.parent), "~")
    lines = [line.rstrip().rpartition("\r")[2] for line in text.strip().splitlines()]
    if len(lines) > 2 * LINES + 1:
        left_out = len(lines) - 2 * LINES
        lines = [*lines[:LINES], f"… {left_out} lines …", *lines[-LINES:]]
    return "\n".join(line[:160] for line in lines)


def in_words(seconds):
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def write_page(records):
    """Writes docs/first_hour.md."""
    commit = records[0]["commit"]
    total = sum(each["seconds"] for each in records)
    failed = [each for each in records if each["status"]]
    skipped = [each for each in records if each["status"] is None]
    failures = f"{len(failed)} failed" if failed else "none failed"
    lines = [
        "# A first hour",
        "",
        f"Every command and example of the README, in order, in a fresh clone of {commit}: "
        f"{in_words(total)} in all, {failures}. Written by `python docs/first_hour.py` on "
        f"{datetime.date.today().isoformat()}: {platform.system()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}.",
    ]
    if skipped:
        lines += ["", f"Not run, as said below: {len(skipped)}."]
    heading = None
    for each in records:
        if each["heading"] != heading:
            heading = each["heading"]
            lines += ["", f"## {heading}"]
        if each["purpose"]:
            lines += ["", f"Not in the README: {each['purpose']}."]
        if each["language"] == "python":
            lines += ["", "```py", each["code"].strip(), "```"]
        shown = [] if each["language"] == "python" else [f"$ {each['code']}"]
        if each["status"] is None:
            lines += ["", "```console", *shown, "```", "", f"Not run: {each['output']}."]
            continue
        output = each["output"].splitlines()
        if shown or output:
            lines += ["", "```console", *shown, *output, "```"]
        status = f" It failed, with status {each['status']}." if each["status"] else ""
        if each["commit"] != commit:
            status += f" This was run in the clone brought to {each['commit']}."
        lines += ["", f"{in_words(each['seconds'])}.{status}"]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", action="append", default=[], help="commands that begin so")
    parser.add_argument("--offline", action="store_true", help="skip what needs a network")
    parser.add_argument("--again", action="store_true", help="begin anew")
    parser.add_argument("--redo", help="run the commands that begin so once more")
    given = parser.parse_args()
    work = ROOT / "build" / "first_hour"
    clone, log = work / "keras-segen", work / "transcript.json"
    if given.again:
        shutil.rmtree(work, ignore_errors=True)
    if not clone.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    if given.redo:
        subprocess.run(["git", "pull", "--quiet"], cwd=clone, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=clone, text=True)
    commit = commit.strip()
    todo = with_preparations(steps((clone / "README.md").read_text(encoding="utf-8")))
    records = json.loads(log.read_text(encoding="utf-8")) if log.exists() else []
    skipped = {start: "left out by the one who ran this" for start in given.skip}
    skipped |= {start: "it needs a network" for start in OFFLINE if given.offline}
    for number, (heading, language, code, purpose) in enumerate(todo):
        if number < len(records) and not (given.redo and code.startswith(given.redo)):
            continue
        print(f"{number + 1} of {len(todo)}: {code.strip().splitlines()[0]}", flush=True)
        reason = next((why for start, why in skipped.items() if code.startswith(start)), None)
        if reason is None:
            status, seconds, output = run(language, code, clone)
        else:
            status, seconds, output = None, 0, reason
        print(f"    {in_words(seconds)}" + (f", status {status}" if status else ""), flush=True)
        record = {"heading": heading, "language": language, "code": code, "purpose": purpose}
        record |= {"status": status, "seconds": seconds, "output": shorten(output, clone)}
        record["commit"] = commit
        records[number : number + 1] = [record]
        log.write_text(json.dumps(records, indent=1), encoding="utf-8")
    write_page(records)
    sys.exit(any(each["status"] for each in records))


if __name__ == "__main__":
    main()
