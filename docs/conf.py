"""The documentation as a site and as man pages: scripts/docs builds both with Sphinx."""

import logging

from worker.core.release import release as version_of

project = "image-volume-worker"
author = "the authors of image-volume-worker"
copyright = "the authors of image-volume-worker"  # noqa: A001  Sphinx's name
version = release = version_of()

# The repository is the source folder, because the pages link to files outside of docs/
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    ".github/*.md",
    "scripts/cloud/README.md",
    "README.md",
    "CHANGELOG.md",
]
exclude_patterns = ["docs/conf.py", ".github/PULL_REQUEST_TEMPLATE.md"]

extensions = ["cliff.sphinxext", "myst_parser", "openstackdocstheme", "oslo_config.sphinxext"]
myst_heading_anchors = 3

# Commands that are called like a group of options. No page links to either by its label
SAME_NAME = ("reclaim", "resync")
logging.getLogger("sphinx.sphinx.domains.std").addFilter(
    lambda record: (
        not (
            str(record.msg).startswith("duplicate label")
            and record.args
            and record.args[0] in SAME_NAME
        )
    )
)

html_theme = "openstackdocs"
html_title = f"image-volume-worker {release}"
openstackdocs_auto_name = False
openstackdocs_auto_version = False
openstackdocs_pdf_link = False
html_copy_source = False
# Two builds of one commit are the same
html_last_updated_fmt = None

man_pages = [
    ("docs/reference", "image-volume-worker", "keeps Glance images as Cinder volumes", [author], 1),
    (
        "docs/options",
        "image-volume-worker.conf",
        "configuration of image-volume-worker",
        [author],
        5,
    ),
]
