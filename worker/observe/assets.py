"""Assets: the files that make up the page, and the policy that a browser gets with them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from worker.observe.web import Answer

PAGE = "/"
FILES = {
    PAGE: ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript")
        for name in ("parts", "charts", "sections", "images", "page")
    },
}
"""The name and the media type of each file, by the path of its request."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A browser may take style and script from us, and ask us, but nobody else."""


@cache
def asset(path: str) -> Answer | None:
    """Return the file of a path as an answer; None if the page has no such file."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    headers = [
        ("Content-Type", f"{kind}; charset=utf-8"),
        # After an upgrade the page and its scripts must be of one release
        ("Cache-Control", "no-store"),
    ]
    if path == PAGE:
        headers.append(("Content-Security-Policy", POLICY))
    body = files("worker.observe").joinpath("page", name).read_bytes()
    return Answer(body=body, headers=tuple(headers))
