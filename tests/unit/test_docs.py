"""The README and the pages in docs/ tell what is true: files exist, definitions load, commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.page_sessions import PAGES as PAGES_RUN_WHOLE
from tests.page_sessions import SAVE

from pipeline_engine.definitions import DefinitionChecker, decode_definition
from pipeline_engine.documents import parse_document
from pipeline_engine.providers.targets import BUILT_IN_PROFILES
from pipeline_engine.templates import Templates

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
TRANSLATION = ROOT / "README.ja.md"
PAGES = [README, TRANSLATION, ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Those whose files and commands are tried one by one; of the others, some are run from their first line to their last.
IN_PARTS = [page for page in PAGES if page.name not in PAGES_RUN_WHOLE and page != TRANSLATION]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
#: What a path in a page may be relative to, besides the folder of the page.
BASES = [ROOT, ROOT / "daemon" / "pipeline_engine"]
TOP_FOLDERS = tuple(f"{folder.name}/" for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != ".")

#: Stands before a command that calls a model; it is tried as a dry run.
NEEDS_MODEL = "<!-- needs a model server -->"

#: Names of HTTP, which look like classes.
HEADERS = ("Host", "Origin", "Quart")

PROFILES = {profile.id: profile for profile in BUILT_IN_PROFILES}
CHECKER = DefinitionChecker(
    templates=Templates(), profiles=PROFILES.get, profile_ids=PROFILES.keys, handlers=lambda _: False
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def paths_named_in(text: str) -> set[str]:
    """Modules, SQL files, and what is said to be in a folder of the project; and the targets of links.

    What a page has its reader save is not of the project.
    """
    words = set(re.findall(r"[\w./-]+", text))
    modules = {word.rstrip(".") for word in words if re.search(r"\w\.(py|sql)\.?$", word)}
    folders = set(re.findall(r"`([\w-]+(?:/[\w-]+)*/)`", text))
    files = {word.rstrip(".") for word in words if word.startswith(TOP_FOLDERS)}
    links = {link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link}
    return (modules | folders | files | links) - set(SAVE.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_and_folder_that_a_page_names_exists(page: Path) -> None:
    named = paths_named_in(text_of(page))
    missing = {path for path in named if not any((base / path).exists() for base in (page.parent, *BASES))}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_heading_that_a_link_names_exists(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(page)):
        headings = re.findall(r"^#+ (.+)$", text_of(page.parent / file if file else page), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{file}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    links = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", text_of(README)))
    assert links == {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}


def code_of(page: Path) -> list[str]:
    """The blocks of code, fenced or indented, and the marks that stand before them."""
    pattern = rf"^```\w*\n(?:.*\n)*?```$|(?:^    .*\n)+|^{re.escape(NEEDS_MODEL)}$"
    return re.findall(pattern, text_of(page), re.MULTILINE)


def test_the_translation_has_the_code_the_links_and_the_parts_of_the_readme() -> None:
    assert len(code_of(README)) > 10
    assert code_of(TRANSLATION) == code_of(README)
    links = [re.findall(r"\]\(([^)]+)\)", text_of(page)) for page in (README, TRANSLATION)]
    assert (links[0][0], links[1][0]) == (TRANSLATION.name, README.name)
    assert links[1][1:] == links[0][1:]
    headings = [re.findall(r"^#+ ", text_of(page), re.MULTILINE) for page in (README, TRANSLATION)]
    assert headings[1] == headings[0]


def test_the_architecture_names_every_package() -> None:
    package = ROOT / "daemon" / "pipeline_engine"
    named = paths_named_in(text_of(ROOT / "docs" / "architecture.md"))
    assert {"engine.py", "steps/runner.py", "store/schema.sql", "api/serving/"} <= named
    assert {f"{folder.name}/" for folder in package.iterdir() if (folder / "__init__.py").exists()} <= named


def test_the_architecture_places_every_nursery() -> None:
    tree = text_of(ROOT / "docs" / "architecture.md").partition("## The tree of nurseries\n")[2].partition("\n## ")[0]
    package = ROOT / "daemon" / "pipeline_engine"
    owners = {
        str(module.relative_to(package)) for module in package.rglob("*.py") if "open_nursery(" in text_of(module)
    }
    assert owners <= paths_named_in(tree)


def test_every_class_and_method_that_the_architecture_names_exists() -> None:
    page = text_of(ROOT / "docs" / "architecture.md")
    source = "\n".join(text_of(module) for module in (ROOT / "daemon").rglob("*.py"))
    defined = set(re.findall(r"^\s*(?:class|async def|def) (\w+)", source, re.MULTILINE))
    named = re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*(?:\.\w+)?)`", page) + re.findall(
        r"`([a-z]+_[a-z_]+)\(?\)?`", page
    )
    known = defined | set(re.findall(r"\w+", text_of(ROOT / "docs" / "events.md"))) | {"max_running_jobs"}
    missing = {name for name in named if not set(name.split(".")) <= known} - set(HEADERS)
    assert len(named) > 10
    assert not missing


def yaml_blocks() -> list[str]:
    """The blocks that hold a whole definition, and not a part of one."""
    blocks = [block for page in IN_PARTS for block in re.findall(r"(?ms)^```yaml\n(.*?)^```$", text_of(page))]
    return [block for block in blocks if re.search(r"(?m)^type:", block) and re.search(r"(?m)^steps:", block)]


@pytest.mark.parametrize("block", yaml_blocks(), ids=lambda block: block.split("\n", 1)[0].removeprefix("type: "))
def test_every_whole_definition_passes_the_checker(block: str) -> None:
    definition = decode_definition(parse_document(block, name="block.yaml").value)
    assert CHECKER.check(definition) == []


def commands() -> list[tuple[str, bool]]:
    """Each `$ [VARIABLE=value] pipeline-engine run …`, and whether it calls a model."""
    pattern = rf"^({re.escape(NEEDS_MODEL)}\n\n)?    \$ ((?:[A-Z_]+=\S+ )*pipeline-engine run .*)$"
    found = [match for page in IN_PARTS for match in re.findall(pattern, text_of(page), re.MULTILINE)]
    return [(line, bool(marker)) for marker, line in found]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """What the commands find around them: a copy of the examples, and the definitions that the README has one save."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "LICENSE", tmp_path)
    for name, block in re.findall(r"(?ms)^Save this as `([\w.]+)`.*?^```yaml\n(.*?)^```$", text_of(README)):
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def test_the_pages_show_commands_of_both_kinds() -> None:
    assert {needs_model for _, needs_model in commands()} == {True, False}


@pytest.mark.parametrize(("line", "needs_model"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_runs(workplace: Path, line: str, needs_model: bool) -> None:
    words = shlex.split(line)
    start = words.index("pipeline-engine")
    variables = dict(word.split("=", 1) for word in words[:start])
    arguments = [*words[start + 1 :], *(["--dry-run"] if needs_model else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline_engine", *arguments],
        cwd=workplace,
        env={**os.environ, "XDG_CONFIG_HOME": str(workplace / "none"), "TMPDIR": str(workplace), **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
