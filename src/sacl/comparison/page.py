"""The page of a few-label comparison: strategies at every number of labeled subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sacl.comparison.points import curve_of, differences_of
from sacl.comparison.tables import (
    cost_table,
    dice_comparisons,
    organ_table,
    overview_table,
    scores_table,
    secondary_table,
    versus_table,
)
from sacl.report.figures import palette
from sacl.report.headline import comparison_sentence, p_equals, points, words
from sacl.report.learning_curves import ablation_bars, forest_plot, learning_curves
from sacl.report.page import Section, Top, bullets, chart, facts, legend, render_page
from sacl.report.tables import MINUS, p_text, plain_table, score_cell

Document = Mapping[str, Any]
_ALPHA = 0.05


def comparison_page(document: Document) -> str:
    """Return the whole page of a comparison's results."""
    sections = [_state_section(document)]
    if document["levels"]:
        sections = [
            _overview_section(document),
            _curves_section(document),
            _versus_section(document),
            *_family_sections(document),
            _scores_section(document),
            _organ_section(document),
            *_ablation_sections(document),
            _cost_section(document),
            _method_section(document),
            *([] if _is_complete(document) else sections),
        ]
    return render_page(_top(document), sections)


def comparison_text(document: Document) -> str:
    """Return the means with intervals and corrected p-values as lines of text."""
    body = []
    for level in document["levels"]:
        comparisons = dice_comparisons(level)
        for name, figures in level["strategies"].items():
            comparison = comparisons.get(name)
            body.append(
                [
                    str(level["labeled_subjects"]),
                    name,
                    str(len(figures["dice_by_seed"])),
                    score_cell(figures["dice"]),
                    score_cell(figures["nsd"]),
                    p_text(comparison["p_holm"]) if comparison else "",
                ]
            )
    if not body:
        return "no cell has finished"
    return plain_table(["labels", "strategy", "seeds", "Dice", "NSD", "p (Holm)"], body)


def _top(document: Document) -> Top:
    protocol, levels = document["protocol"], document["levels"]
    seeds = len(protocol["seeds"])
    subtitle = f"{document['cohort'] or 'no cohort yet'} · {seeds} seed{'s' * (seeds != 1)}"
    if levels:
        subtitle += f" · scored on {_scored(levels[0])} · {document['date'][:10]}"
    sentences = [_sentence(level, protocol) for level in levels]
    details = sentences[1:]
    if not _is_complete(document):
        done = sum(cell["state"] == "done" for cell in document["cells"])
        count = len(document["cells"])
        details.append(f"Not finished: {done} of {count} cells are in these figures.")
    smallest = [c["smallest_p"] for x in levels for c in dice_comparisons(x).values()]
    if smallest and min(smallest) >= _ALPHA:
        details.append(
            f"With so few subjects no p-value below {min(smallest):.3g} is possible: this test"
            " cannot show a difference, whatever the scores."
        )
    return Top(
        protocol["name"], subtitle, sentences[0] if sentences else "No cell has finished.", details
    )


def _sentence(level: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Return the result against the baseline at one number of labels, then against the best."""
    start, ours = f"With {level['labeled_subjects']} labeled subjects, ", words(protocol["ours"])
    comparisons = dice_comparisons(level)
    first = comparisons.get(protocol["baseline"])
    if first is None or first["p_holm"] is None:
        return start + f"{ours} has nothing to be compared with yet."
    means = {
        name: figures["dice"]["mean"]
        for name, figures in level["strategies"].items()
        if name in protocol["strategies"]
    }
    text = start + comparison_sentence(first, ours, means[first["run"]], means[first["against"]])
    if first["low"] is not None:
        text += f" ({points(first['mean_difference'])} points, 95 % interval"
        text += f" {points(first['low'])} to {points(first['high'])}, {p_equals(first['p_holm'])})"
    text += _caution(first)
    best = max(means, key=lambda name: means[name] or 0.0)
    if best not in (protocol["ours"], protocol["baseline"]):
        verdict = p_equals(comparisons[best]["p_holm"])
        text += f"; the highest mean is that of {words(best)}, {means[best]:.3f} ({verdict})"
    return text + "."


def _caution(comparison: Mapping[str, Any]) -> str:
    """Say so where a difference is clear over subjects, and not over other seeds too."""
    pairs = comparison["subject_seed_pairs"]
    if pairs["low"] is None or comparison["p_holm"] >= _ALPHA or comparison["seeds"] < 2:
        return ""
    if pairs["low"] > 0 or pairs["high"] < 0:
        return ""
    return "; with other seeds it may be otherwise, an interval that resamples them includes 0"


def _scored(level: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{counts['subjects']} {split} subjects ({counts['cases']} scans)"
        for split, counts in level["scored"].items()
    )


def _is_complete(document: Document) -> bool:
    return all(cell["state"] == "done" for cell in document["cells"])


def _strategies(document: Document) -> list[str]:
    return list(document["protocol"]["strategies"])


def _overview_section(document: Document) -> Section:
    note = (
        f"Mean over subjects, in brackets its {100 * document['confidence']:.0f} % bootstrap"
        " interval over subjects; best mean in bold. p:"
        f" {document['protocol']['ours']} against this strategy. {document['tests']['primary']}."
    )
    return Section("Strategies by number of labeled subjects", overview_table(document), note)


def _curves_section(document: Document) -> Section:
    colors = palette(_strategies(document))
    levels_of = {name: curve_of(document, name) for name in colors}
    levels_of = {name: levels for name, levels in levels_of.items() if levels}
    shown = [(name, colors[name]) for name in levels_of]
    note = (
        "Dash: mean over subjects and seeds. Dot: mean of one seed. Band: interval over subjects."
        " Strategies are shifted a little sideways. Smaller sets of labeled subjects are contained"
        " in larger ones, and the same in all seeds."
    )
    body = legend(shown) + chart(learning_curves(levels_of, colors, "Dice"))
    return Section("Learning curves", body, note)


def _versus_section(document: Document) -> Section:
    ours, names = document["protocol"]["ours"], _strategies(document)
    groups = differences_of(document, "comparisons", sign=1)
    label = f"{ours} less the other strategy, points of Dice"
    body = chart(forest_plot(groups, label)) if groups else ""
    body += _by_level(document["levels"], lambda level: versus_table(level, names))
    note = (
        "Points are hundredths of Dice; in brackets bootstrap intervals over subjects. A filled dot"
        " is a difference with p < 0.05 after Holm's correction. Effect: matched-pairs"
        f" rank-biserial correlation, from {MINUS}1 to 1. Won, tied, lost: subjects in which {ours}"
        " is above, equal or below."
    )
    return Section(f"Ours ({ours}) against every other strategy", body, note)


def _family_sections(document: Document) -> list[Section]:
    """Return a section for every further family of tests that has a figure."""
    sections = []
    for name, others in document["protocol"].get("families", {}).items():
        levels = [level for level in document["levels"] if level["families"].get(name)]
        if levels:
            table = partial(versus_table, names=(name, *others), family=name)
            note = "A family of tests of its own: Holm's correction is over these rows."
            title = f"{name} against {', '.join(others)}"
            sections.append(Section(title, _by_level(levels, table), note))
    return sections


def _scores_section(document: Document) -> Section:
    names = _strategies(document)
    note = (
        f"NSD at {document['nsd_tolerance_mm']:g} mm; its p-values are a family of tests of their"
        " own. HD95: mean over finite values. SD of seeds: standard deviation of the seeds' mean"
        " Dice. Missed and invented: pairs of scan, organ and seed."
    )
    return Section(
        "Other scores", _by_level(document["levels"], lambda x: scores_table(x, names)), note
    )


def _by_level(
    levels: Sequence[Mapping[str, Any]], table: Callable[[Mapping[str, Any]], str]
) -> str:
    """Return a table per number of labeled subjects under a heading each."""
    return "".join(
        f"<h3>{level['labeled_subjects']} labeled subjects</h3>{table(level)}" for level in levels
    )


def _organ_section(document: Document) -> Section:
    names, organs = _strategies(document), document["organs"]
    body = _by_level(document["levels"], lambda level: organ_table(level, organs, names))
    note = "Means over subjects and seeds; best of a row in bold."
    return Section("Organ by organ", body, note)


def _ablation_sections(document: Document) -> list[Section]:
    groups = differences_of(document, "ablations", sign=-1)
    if not groups:
        return []
    ours = document["protocol"]["ours"]
    color = palette(_strategies(document))[ours]
    body = chart(ablation_bars(groups, color, f"change against {ours}, points of Dice"))
    names = (ours, *document["protocol"]["ablations"])
    levels = [level for level in document["levels"] if level["ablations"]]
    body += _by_level(levels, lambda level: versus_table(level, names))
    note = (
        f"Each bar is {ours} with one thing changed, less {ours} as it is; the line is the interval"
        " of the paired difference over subjects. The ablations are a family of tests of their own."
    )
    return [Section("Ablations", body, note)]


def _cost_section(document: Document) -> Section:
    cores = document["machine"]["cores"]
    note = (
        "Median over the strategy's cells; steps of pretraining and of fine-tuning. An encoder that"
        f" several cells share was pretrained once. {cores} cores,"
        f" {document['machine']['architecture']}, torch {document['versions'].get('torch', '')}."
    )
    return Section("What it cost", cost_table(document), note)


def _method_section(document: Document) -> Section:
    protocol = document["protocol"]
    coarse = "trained anew for every seed" if protocol["vary_coarse"] else "the same for all seeds"
    pairs = [
        ("Unit", "a subject: mean over its organs, then over its scans, then over the seeds"),
        ("Primary test", document["tests"]["primary"]),
        ("Secondary test", document["tests"]["secondary"]),
        ("Intervals", f"{document['bootstrap']['resamples']} resamples, percentile bootstrap"),
        ("Empty organs", document["rule_for_empty_organs"]),
        ("Seeds", ", ".join(map(str, protocol["seeds"]))),
        ("Coarse networks", coarse),
        ("Settings", f"hash {document['settings_hash']}, revision {document['git_revision']}"),
    ]
    body = (
        facts(pairs) + "<h3>Secondary: pairs of subject and seed</h3>" + secondary_table(document)
    )
    return Section("How it was compared", body)


def _state_section(document: Document) -> Section:
    missing = [cell for cell in document["cells"] if cell["state"] != "done"]
    texts = [
        f"{cell['name']}: {cell['state']}" + (f", {cell['cause']}" if cell.get("cause") else "")
        for cell in missing
    ]
    return Section("Cells that are not in these figures", bullets(texts))
