"""The documentation site: `make docs`.  Nothing in it comes from anywhere but this repository."""

import qkvc

project = "qkvc"
author = "the qkvc developers"
version = release = qkvc.__version__
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
myst_heading_anchors = 3
default_role = "py:obj"  # `attention` in a docstring is a link to it, a parameter's name is only code
templates_path = ["templates"]
exclude_patterns = ["templates"]

autodoc_mock_imports = ["onnx"]  # whose operators qkvc.integrations.onnx are
autodoc_typehints = "none"  # the docstrings have them, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = "qkvc"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
