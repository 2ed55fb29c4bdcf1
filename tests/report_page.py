"""A report page as a browser reads it, and a finished run whose parts a test may change."""

import html.parser
import json
from pathlib import Path

from evoid_jax import proof
from evoid_jax.report import page as report


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], ""
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words.append(data.strip())

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def read(workdir: Path) -> Page:
    return Page((workdir / "report.html").read_text("utf-8"))


def with_summary(workdir: Path, **changes) -> Page:
    """Change parts of a run's summary and write its page again."""
    summary = json.loads((workdir / "summary.json").read_text())
    proof.write_json(workdir / "summary.json", summary | changes)
    report.write(workdir)
    return read(workdir)


def headline_kind(page: Page) -> str:
    """Return what the headline is coloured as: up, down or flat."""
    (kind,) = [div["class"] for div in page.all("div") if div.get("class", "").startswith("big ")]
    return kind.removeprefix("big ")
