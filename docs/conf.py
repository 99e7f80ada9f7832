"""Sphinx configuration of the documentation; `make docs` builds it with warnings as errors."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions")]

import harmonizer  # noqa: E402

project = "brain-harmonizer"
author = "The brain-harmonizer developers"
version = release = harmonizer.__version__

extensions = [
    "generated_reference",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["build", "images/README.md", "tutorials/*"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

autodoc_typehints = "none"  # docstrings state types, shapes and units
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_ignore_module_all = False
smartquotes = False  # texts contain JSON and flags
default_role = "literal"  # docstrings are Markdown-like: single backticks are code
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes as a list, so that fields are not described twice
napoleon_custom_sections = [("Returns", "params_style")]

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "parallel": 2,
    "reset_modules": (),
    "show_memory": False,
    "min_reported_time": 0,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
}

html_theme = "pydata_sphinx_theme"
html_title = "brain-harmonizer"
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 6,
    "pygments_light_style": "tango",
}
html_show_sourcelink = False
html_copy_source = False
