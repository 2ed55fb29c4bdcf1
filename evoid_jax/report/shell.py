"""Put a page together from its parts: one file of HTML with its style and its one script.

Everything that comes from a run (prompts, names, config values) goes through `escape` before it is
a part. The page's Content-Security-Policy allows no network and no script but its own, by digest,
so that a mistake in escaping could still not run anything.
"""

import base64
import hashlib
import re
from importlib import resources

from evoid_jax.report import text as fmt

TITLES = {  # of the links, where a section's id says too little
    "scorers": "models",
    "rewards": "curves",
    "health": "reward health",
    "made": "origin",
    "every": "every triple",
    "choices": "people",
    "runs": "the runs",
    "rows": "videos",
}


def page(title: str, body: str, kind: str = "report", media: str = "data:") -> str:
    """Return a whole page.

    Args:
      title: plain text.
      body: HTML.
      kind: of the page's own style and script, assets/KIND.css and assets/KIND.js; the style comes
        after that of the report.
      media: origins of videos and photos, see `shelf.policy`.
    """
    style = _asset("report.css") + ("" if kind == "report" else _asset(f"{kind}.css"))
    script = _asset(f"{kind}.js")
    fill = {
        "TITLE": fmt.escape(title),
        "MEDIA": media,
        "STYLE": style,
        "BODY": body,
        "SCRIPT": script,
        # The policy names the script by the digest of the text between its tags.
        "DIGEST": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    # One pass: what is filled in is not searched again, whatever a prompt contains.
    return re.sub(r"@@([A-Z]+)@@", lambda match: fill[match[1]], _asset("report.html"))


def links(body: str) -> str:
    """Return the links to the sections of a body, in their order."""
    names = re.findall(r"<section id='([a-z]+)'|<details id='(config)'", body)
    shown = "".join(
        f"<a href='#{name}'>{TITLES.get(name, name)}</a>" for name in map("".join, names)
    )
    return f"<nav aria-label='sections'>{shown}</nav>"


def _asset(name: str) -> str:
    return resources.files("evoid_jax").joinpath(f"assets/{name}").read_text("utf-8")
