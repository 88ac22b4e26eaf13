import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
]


def test_the_examples_are_collected(pytestconfig, request):
    examples = [item for item in request.session.items if ".md" in str(item.path)]
    asked_for_docs = any("README" in str(a) or "docs" in str(a) for a in pytestconfig.args)
    if not asked_for_docs:
        pytest.skip("only some test files were asked for")
    assert len(examples) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_settings_page_is_up_to_date():
    from sacl.run.configure import settings_page

    page = ROOT / "docs" / "reference" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), (
        "run `python -m sacl.run.configure > docs/reference/settings.md`"
    )


def test_the_readme_opens_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make demo") < 600
    assert text.index("make test") < 700
