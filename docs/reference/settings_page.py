"""Write the reference page of all settings: `python docs/reference/settings_page.py`."""

from __future__ import annotations

from pathlib import Path

from sacl.run.configure import dotted_settings

PAGE = Path(__file__).with_name("settings.md")
_PAGE_HEAD = (
    "Every setting, as a key in YAML and as a dotted flag: its type, default and meaning. Of the",
    "blocks `locate.slices`, `locate.volume` and `locate.maps` one may be given, likewise of",
    "`finetune.dense` and `finetune.query` (which has no settings).",
)


def settings_page() -> str:
    """Return the reference page of all settings, in Markdown."""
    lines = ["# Settings", "", *_PAGE_HEAD]
    block = None
    for name, declared in dotted_settings().items():
        head = name.split(".")[0] if "." in name else "run"
        if head != block:
            block = head
            columns = ("| setting | type | default | meaning |", "|---|---|---|---|")
            lines += ["", f"## {head}", "", *columns]
        cells = (name, declared.kind.replace(" | ", ", "), declared.usual, declared.text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
