"""Run an experiment and keep its figures: few labels, pretrained against its from-scratch twins.

`python benchmarks/few_labels.py runs/hippocampus.yaml --data DIR` runs the configuration (or takes
it as it stands, where the work directory is up to date) and writes
`results/few_labels_<name>.json`: settings of every stage, seconds per stage, the scores of every
run with intervals and paired tests, the coarse network's Dice on the labeled scans, and the
separability of the encoder's embedding. Scored subjects are those that no training saw.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from circumstances import circumstances

from sacl import load_config
from sacl.cohort.manifest import read_cohort
from sacl.files.atomic import write_text
from sacl.report.embedding import separabilities
from sacl.run.pipeline import run, workspace_of
from sacl.run.record import read_record
from sacl.run.workspace import FOLDERS
from sacl.stages.report import read_embedding

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run, collect, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", help="folder of the cohort")
    parser.add_argument("--work", help="work directory")
    parser.add_argument("--seed", default="0")
    known = parser.parse_args()
    flags = {"seed": known.seed}
    if known.data:
        flags["ingest.data"] = known.data
    if known.work:
        flags["work"] = known.work
    config = load_config(known.config, flags)
    run(config)
    workspace = workspace_of(config)
    records = {s: read_record(workspace.folder(s)) for s in FOLDERS}
    done = {stage: record for stage, record in records.items() if record}
    cohort = read_cohort(workspace.require("ingest"))
    summary = json.loads((workspace.folder("evaluate") / "summary.json").read_text())
    embedding = read_embedding(workspace.require("pretrain") / "embedding.npz")
    label = " x ".join(config.pretrain.scan_label_names)
    result = {
        "script": f"benchmarks/few_labels.py {known.config}",
        "data": "phantom" if config.phantom.scans else "real",
        "settings": {stage: r["settings"][stage] for stage, r in done.items()},
        "seed": config.seed,
        "cohort": {
            "training_scans": len(cohort.of_split("train")),
            "labeled_subjects": len({c.subject_id for c in cohort.labeled}),
            "scored_subjects": summary["subjects"],
        },
        "seconds": {stage: r["duration_s"] for stage, r in done.items()},
        "minutes_in_all": round(sum(r["duration_s"] for r in done.values()) / 60, 1),
        "steps": done["finetune"]["results"]["steps"],
        "coarse": done["locate"]["results"],
        "embedding": [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in asdict(row).items()
            }
            for row in separabilities(embedding, label, config.seed)
        ],
        "scores": summary,
        **circumstances(),
    }
    out = RESULTS / f"few_labels_{config.name}.json"
    write_text(out, json.dumps(result, indent=1, default=str) + "\n")
    for name, figures in summary["runs"].items():
        print(f"{name:<14} Dice {figures['dice']['mean']:.3f}")
    print(out)


if __name__ == "__main__":
    main()
