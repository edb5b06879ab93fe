"""A Sphinx extension: no page of the book loads anything from elsewhere.

Jupyter Book puts thebe, which asks a server for a kernel, on every page (twice, which is a script error) even when it
is switched off: it is taken off. Whatever else a page would load from another host is a warning, that is, an error.

It also sets right two roles that docutils gives to bibliographies and screen readers cannot make sense of.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def only_local(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Drop thebe's scripts from the page and warn of every script or style from another host."""
    body = context.get("body") or ""
    context["body"] = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">').replace(
        ' role="doc-biblioentry"', ""
    )
    kept = []
    for script in context.get("script_files", []):
        body = (getattr(script, "attributes", None) or {}).get("body") or ""
        name = str(getattr(script, "filename", script) or "")
        if "THEBE_JS_URL" in body or "sphinx-thebe" in name:
            continue
        kept.append(script)
    context["script_files"] = kept
    for file in [*kept, *context.get("css_files", [])]:
        name = str(getattr(file, "filename", file) or "")
        if "//" in name:
            logger.warning("%s would load %s", page, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx, after every extension that adds scripts."""
    app.connect("html-page-context", only_local, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
