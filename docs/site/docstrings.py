"""Sphinx reads docstrings as they are written here, and code that is a public name becomes a link to its page."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from docutils import nodes
from markup import to_rst
from names import first_use, modules
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Before napoleon forms the sections."""
    lines[:] = to_rst(lines)


def skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what others put into a class: scikit-learn's `set_score_request`, "Alias for field number 0"."""
    home, said = getattr(obj, "__module__", None), getattr(obj, "__doc__", None)
    foreign = isinstance(home, str) and home.startswith("sklearn.")
    return True if foreign or (isinstance(said, str) and said.startswith("Alias for field")) else None


def targets() -> dict[str, str]:
    """What code in a page may link to: dotted names of modules and names, and class names that occur once."""
    known = modules()
    classes = [(name.name, module.name) for module in known for name in module.names if name.kind == "class"]
    once = Counter(name for name, _ in classes)
    found = {name: f"{module}.{name}" for name, module in classes if once[name] == 1}
    for module in known:
        found[module.name] = module.name
        found |= {f"{module.name}.{name.name}": f"{module.name}.{name.name}" for name in module.names}
    found |= {f"thalweg.{name}": f"{module}.{name}" for name, module in first_use().items()}
    short = {key.removeprefix("thalweg."): value for key, value in found.items() if key.count(".") > 1}
    return short | found


class LinkCode(SphinxTransform):
    """Code that is a public name links to its page."""

    default_priority = 400

    def apply(self, **kwargs: object) -> None:
        """Wrap each such literal, but in a link or a title."""
        known = self.config.thalweg_targets
        for node in list(self.document.findall(nodes.literal)):
            parent, target = node.parent, known.get(node.astext().removesuffix("()").replace(":", "."))
            inside = (nodes.reference, nodes.title, pending_xref)
            if target is None or isinstance(parent, inside):
                continue
            link = pending_xref("", refdomain="py", reftype="obj", reftarget=target, refexplicit=True)
            link["refdoc"] = self.env.docname
            parent.replace(node, link)
            link += node


class English(SearchEnglish):
    """Sphinx's own search words of English, each stemmed once: that was a tenth of the build."""

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self.stem = functools.cache(super().stem)  # type: ignore[method-assign]


FORMED: dict[str, str] = {}


def kept(form: Callable[..., str]) -> Callable[..., str]:
    """A function that forms each navigation once."""

    def of(**options: object) -> str:
        key = str(sorted(options.items()))
        if key not in FORMED:
            FORMED[key] = form(**options)
        return FORMED[key]

    return of


def one_navigation(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """The API's pages share one navigation, as none of them is part of it; else it is formed for each anew."""
    context["language"] = "zh-CN" if page == "README.zh" else context["language"]
    if page.startswith("api/thalweg"):
        context["toctree"] = kept(context["toctree"])


def setup(app: Sphinx) -> dict[str, bool]:
    """For Sphinx."""
    app.add_config_value("thalweg_targets", targets(), "")
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-skip-member", skip)
    app.add_transform(LinkCode)
    app.add_search_language(English)
    app.connect("html-page-context", one_navigation, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
