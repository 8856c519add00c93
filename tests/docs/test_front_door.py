"""The Chinese README says what the English one says; every path of llms.txt is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = (ROOT / "README.md").read_text("utf-8"), (ROOT / "README.zh.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
REMARK = re.compile(r"\s{2,}.*|(?<=^.{44}) [^\[].*")  # after two spaces, or in the column of remarks
ENTRY = re.compile(r"^- \[[^\]]+\]\(([^)\s]+)\): \S.*$")


def code(text: str) -> list[object]:
    """The code of a page without its comments: of python its syntax, of commands what stands before the remark."""
    found = []
    for language, block in BLOCK.findall(text):
        commands = [REMARK.sub("", line) for line in block.splitlines()]
        found.append(ast.dump(ast.parse(block)) if language == "python" else commands)
    return found


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def differences(english: str, chinese: str) -> dict[str, object]:
    """Code, links and figures that one of the two has and the other has not."""
    found: dict[str, object] = {}
    if code(english) != code(chinese):
        found["code"] = [pair for pair in zip(code(english), code(chinese), strict=False) if pair[0] != pair[1]]
    for kind, pattern in (("links", LINK), ("figures", NUMBER)):
        one, other = (sorted(pattern.findall(prose(text))) for text in (english, chinese))
        if one != other:
            found[kind] = sorted(set(one) ^ set(other)) or "one is named more often"
    return found


def test_each_readme_links_to_the_other_in_its_first_line():
    first = ENGLISH.partition("\n")[0], CHINESE.partition("\n")[0]
    assert "(README.zh.md)" in first[0]
    assert "(README.md)" in first[1]


def test_the_chinese_readme_is_the_english_one():
    """Its code runs as README's does, since it is README's."""
    english, chinese = (text.partition("\n")[2] for text in (ENGLISH, CHINESE))
    assert len(code(english)) >= 4
    assert differences(english, chinese) == {}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("seed=0)", "seed=1)", "code"),
        ("make demo ", "make show ", "code"),
        ("--resume]", "--again]", "code"),
        ("docs/guide/train.md", "docs/guide/runs.md", "links"),
        ("98.7", "99.7", "figures"),
    ],
)
def test_a_difference_is_found(old, new, kind):
    assert old in CHINESE
    assert kind in differences(ENGLISH.partition("\n")[2], CHINESE.partition("\n")[2].replace(old, new, 1))


def test_every_path_of_llms_txt_is_there():
    """The form of llmstxt.org: a title, a summary, sections of links with a phrase each."""
    lines = (ROOT / "llms.txt").read_text("utf-8").splitlines()
    assert re.fullmatch(r"# \S.*", lines[0])
    assert re.fullmatch(r"> \S.*", lines[2])
    listed = [line for line in lines if line.startswith("- ")]
    paths = [match[1] for match in map(ENTRY.match, listed) if match]
    assert len(paths) == len(listed) > 10
    assert [path for path in paths if not (ROOT / path.partition("#")[0]).exists()] == []
    assert len(set(paths)) == len(paths)
