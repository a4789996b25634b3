"""Sphinx builds the site from the Markdown of the repository (`make docs`), so that its links work here and there."""

project = "expo"
root_doc = "docs/index"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**",
    "experiments/**",
    "expo/model/assets/ladder/README.md",
]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "expo"
html_static_path = ["_static"]
html_css_files = ["expo.css"]
suppress_warnings = ["myst.header"]  # a table.md, which other pages may include, begins at the second level
