"""Pages opened in a real headless browser: what it sees at several widths, in light and dark."""

import html
import json
import re
import shutil
import subprocess

import numpy as np

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome", "google-chrome"))),
    None,
)

# Opens the untouched page in frames of given widths and writes what each sees into its own body.
FRAME = (
    '<iframe style="border: 0; display: block; width: {width}px; height: {height}px"'
    ' srcdoc="{page}"></iframe>'
)
PROBE = """<script>
addEventListener("load", () => {
  const seen = Array.from(frames, frame => {
    const page = frame.document, style = element => frame.getComputedStyle(element);
    const wide = element => !element.closest(".scroll, svg")
      && element.getBoundingClientRect().right > frame.innerWidth + 1;
    return {
      inner: frame.innerWidth,
      width: page.documentElement.scrollWidth,
      height: page.documentElement.scrollHeight,
      background: style(page.body).backgroundColor,
      ink: style(page.querySelector("h1")).color,
      chart: page.querySelector("svg text") && style(page.querySelector("svg text")).fill,
      broken: [...page.images].filter(image => !image.naturalWidth).length,
      requests: frame.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
      hidden: [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
        .filter(e => !e.closest("details:not([open])")).map(e => e.getAttribute("aria-label")),
      wide: [...page.querySelectorAll("main *")].filter(wide).map(e => e.outerHTML.slice(0, 80)),
    };
  });
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>"""


def browse(page, folder, widths, scheme, *arguments, height=1000):
    """Opens a report in the browser; returns what it sees at each width, and the browser's log."""
    text = html.escape(page.read_text("utf-8"))
    frames = [FRAME.format(width=width, height=height, page=text) for width in widths]
    opened = folder / "opened.html"
    opened.write_text(f'<!DOCTYPE html><body style="margin: 0">{"".join(frames)}{PROBE}', "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={folder / 'profile'}", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", f"--window-size={max(widths)},{height}"]
    command += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
    command += [*arguments, "--dump-dom", opened.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    seen = re.search(r'data-seen="([^"]*)"', run.stdout)
    assert seen, run.stderr[-2000:]
    return json.loads(html.unescape(seen[1])), run.stderr


def brightness(color):
    return np.mean([int(number) for number in re.findall(r"\d+", color)[:3]])
