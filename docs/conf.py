"""How Sphinx builds these pages: `make docs`. Nothing is fetched, here or by the reader."""

project = "autorun"
author = "the autorun developers"
copyright = author  # noqa: A001
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
pygments_style = "default"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = "autorun"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sphinx = False
