"""Sphinx's configuration. `python docs/site/build.py` writes the sources of the site and calls Sphinx with it."""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import thalweg

# Autodoc imports modules as a type checker would, with TYPE_CHECKING true, and under that pydantic's models of OpenAPI
# cannot be made. What is imported before stays as it is.
for package in ("fastapi", "fastapi.openapi.models", "uvicorn", "prometheus_client"):
    with suppress(ImportError):
        import_module(package)

project, author, release = "Thalweg", "the Thalweg authors", thalweg.__version__
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "docstrings"]
nitpicky = smartquotes = False
myst_heading_anchors = 6  # as GitHub forms them; a link to an anchor that is not there is a warning
highlight_language = "text"
pygments_style, pygments_dark_style = "friendly", "monokai"
suppress_warnings = ["misc.highlighting_failure", "ref.python"]  # the latter: a type's name that two modules define

add_module_names = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
python_maximum_signature_line_length = 100
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"Thalweg {release}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["style.css"]
html_copy_source = html_show_sphinx = False
html_domain_indices = True
copybutton_prompt_text = "$ "
