"""Docstrings as they are written here, plain text with code in single backticks, as reStructuredText.

reStructuredText would take |x|, x* and `name` for markup. So everything but code, lists, indented blocks and the
sections of arguments is escaped.
"""

import re

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples|Note):$")
CODE = re.compile(r"(`{1,2})([^`]+)\1")
BEFORE, AFTER = " \t'\"([{<-/:", " \t'\")]}>-/\\:.,;!?"  # what may stand beside markup
SPECIAL = re.compile(r"([\\*|`]|_(?!\w)|(?<!\w)_)")
START = re.compile(r"^(\.\. |: |:(?=\w)|[=~^#+-]{4,}|(?:[A-Za-z]|[ivx]+)[.)] |\((?:\w|[ivx]+)\) )")


def escaped(line: str) -> str:
    """A line of text, with code in double backticks and nothing else of markup."""
    indent = line[: len(line) - len(line.lstrip())]
    out, at, rest = [], 0, line[len(indent) :]
    for match in CODE.finditer(rest):
        before = rest[at : match.start()]
        out += [SPECIAL.sub(r"\\\1", before), "" if not before or before[-1] in BEFORE else r"\ ", f"``{match[2]}``"]
        at = match.end()
        out.append("" if rest[at : at + 1] in AFTER else r"\ ")
    text = "".join([*out, SPECIAL.sub(r"\\\1", rest[at:])])
    return indent + START.sub(r"\\\1", text)


def joined(code: re.Match[str]) -> str:
    """Code that goes on in the next line, on one line."""
    return code[0] if "\n" not in code[0] or "\n\n" in code[0] else " ".join(code[0].split())


def to_rst(lines: list[str]) -> list[str]:
    """A docstring's lines: indented blocks are shown as they are, list items stay items, the rest is escaped."""
    text = CODE.sub(joined, "\n".join(lines))
    out: list[str] = []
    blank, inside, literal = True, False, False
    for line in text.split("\n"):
        indented = line.startswith("    ")
        if not line.strip():
            blank = True
            out.append("")
            continue
        if SECTION.match(line):
            inside, literal = True, False
            out += [*([] if blank else [""]), line]
        elif indented and not inside and (literal or blank):
            out += [*([] if literal else ["::", ""]), line]
            literal = True
        else:
            inside, literal = inside and indented, False
            item = line.lstrip().startswith("- ")
            if item and out and out[-1].strip() and not out[-1].lstrip().startswith("- ") and out[-1][:1] != " ":
                out.append("")
            out.append(escaped(line))
        blank = False
    return out
