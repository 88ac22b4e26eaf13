import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
OURS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*OURS, *sorted((ROOT / "research").rglob("*.md"))]
WORN_OUT = ("anew", "as said", "the like of", "nobody's", "expect less", "somebody else's")


def name_of(page):
    return str(page.relative_to(ROOT))


def test_the_examples_are_collected(pytestconfig, request):
    examples = [item for item in request.session.items if ".md" in str(item.path)]
    asked_for_docs = any("README" in str(a) or "docs" in str(a) for a in pytestconfig.args)
    if not asked_for_docs:
        pytest.skip("only some test files were asked for")
    assert len(examples) >= 2


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for named in re.findall(r"`((?:src|research|docs|runs|tests)/[\w./-]*\w/?)`", text):
        assert (ROOT / named).exists(), f"{page.name}: {named}"


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_pages_are_plain_english(page):
    text = " ".join(page.read_text(encoding="utf-8").lower().split())
    assert not [words for words in WORN_OUT if re.search(rf"\b{words}\b", text)]


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_has_context_choice_and_consequence(page):
    text = page.read_text(encoding="utf-8")
    at = [text.index(f"\n**{part}.** ") for part in ("Context", "Choice", "Consequence")]
    assert at == sorted(at)
    assert page.name in (page.parent / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 300, "half a page"


def test_the_settings_page_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "docs" / "reference" / "settings_page.py"))
    assert generator["PAGE"].read_text(encoding="utf-8") == generator["settings_page"](), (
        "run `python docs/reference/settings_page.py`"
    )


def test_the_tables_of_many_scans_are_those_of_what_was_measured():
    generator = runpy.run_path(str(ROOT / "docs" / "how-to" / "many_scans_table.py"))
    assert generator["PAGE"].read_text(encoding="utf-8") == generator["many_scans_page"](), (
        "run `python docs/how-to/many_scans_table.py`"
    )


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_settings_in_yaml_are_those_of_the_program(page, tmp_path):
    from sacl.run.configure import load_config

    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        (tmp_path / "run.yaml").write_text(block, encoding="utf-8")
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_commands_are_those_of_the_program(page, capsys):
    from sacl.cli import main
    from sacl.run.configure import dotted_settings

    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^\$ (sacl .*)$", text, re.MULTILINE):
        command, *words = line.split("#")[0].split()[1:]
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        shown = capsys.readouterr().out
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        unknown = {flag for flag in flags if not re.search(rf"{flag}\b", shown)}
        assert {flag[2:] for flag in unknown} <= set(dotted_settings()), line


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_settings_in_text_are_those_of_the_program(page):
    from sacl.run.configure import dotted_settings

    if "decisions" in page.parts:
        pytest.skip("decisions name settings of their time")
    known = set(dotted_settings())
    blocks = {"finetune.query", *(name.rsplit(".", 1)[0] for name in known if "." in name)}
    text = page.read_text(encoding="utf-8")
    first = "|".join(sorted({block.split(".")[0] for block in blocks}))
    for named in re.findall(rf"`(?:--)?((?:{first})\.[a-z_.]+)[`: =]", text):
        assert named in known | blocks, f"{page.name}: {named}"


MODULES = sorted((ROOT / "src" / "sacl").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_settings_in_messages_are_those_of_the_program(module):
    from sacl.run.configure import dotted_settings

    known = set(dotted_settings())
    blocks = {"finetune.query", *(name.rsplit(".", 1)[0] for name in known if "." in name)}
    first = "|".join(sorted({block.split(".")[0] for block in blocks}))
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    text = "\n".join(str(node.value) for node in nodes if isinstance(node, ast.Constant))
    named = set(re.findall(rf"(?<![\w./])(?:{first})\.[a-z_]+(?:\.[a-z_]+)?", text))
    assert {n for n in named if not n.endswith((".json", ".csv", ".html"))} <= known | blocks


def test_the_readme_opens_with_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert text.index("make demo") < 600
    assert text.index("make test") < 700


def test_the_readme_fits_on_a_page_and_a_half():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 95


def test_the_map_of_the_source_names_every_room_and_no_other():
    text = README.read_text(encoding="utf-8")
    drawn = re.search(r"```\n(src/sacl/\n.*?)```", text, re.DOTALL).group(1)
    named = {
        word.rstrip("/")
        for line in drawn.splitlines()
        if line.startswith("  ")
        for word in re.findall(r"[\w.]+/?", line[:29])
    }
    source = ROOT / "src" / "sacl"
    rooms = {folder.parent.name for folder in source.glob("*/__init__.py")}
    assert rooms <= named
    assert not [name for name in named if not (source / name).exists()]
