"""`python -m research`: compare strategies by a protocol, render results, measure."""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
if os.path.abspath(sys.path[0] or ".") == os.getcwd() != _ROOT:  # noqa: PTH100, PTH109
    del sys.path[0]  # a file of the current folder must not stand in for one of the library
    sys.path.append(_ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import runpy  # noqa: E402
import signal  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from sacl.commands import take_dotted_flags  # noqa: E402
from sacl.errors import ConfigError, SaclError  # noqa: E402

BENCHMARKS = Path(__file__).parent / "benchmarks"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 a cell failed, 2 usage or input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["benchmark"]:
            return _benchmark(words[1:])
        flags, rest = take_dotted_flags(words)
        known = _program().parse_args(rest)
        return int(known.run(known, flags))
    except SaclError as error:
        print(f"research: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("research: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _program() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m research", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    of_grid: tuple[tuple[str, Callable[..., int], str], ...] = (
        ("compare", _compare, "run the cells of a protocol that are not done, and write results"),
        ("list", _list, "print the cells of a protocol with their state, and run none"),
        ("cell", _cell, "run one cell of a protocol, and write no results"),
    )
    for name, run, text in of_grid:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("protocol", type=Path, help="YAML file, or a name: acdc, phantom, ...")
        command.add_argument("--data", nargs="+", metavar="DIR", help="folders of scans")
        command.add_argument("--work", type=Path, metavar="DIR", help="another folder of the cells")
        command.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps")
        if name == "cell":
            command.add_argument("--name", required=True, help="name of the cell")
            continue
        command.add_argument("--only", nargs="+", default=[], metavar="STRATEGY")
        command.add_argument("--seeds", nargs="+", default=[], type=int, metavar="N")
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "compare":
            command.add_argument("--workers", type=int, metavar="N", help="cells at once (1)")
            command.add_argument("--engine", help="local (default), or ray")
            command.add_argument("--ray-address", metavar="HOST:PORT", help="a cluster of Ray")
            command.add_argument("--shard", metavar="I/N", help="run the i-th of n parts")
            command.set_defaults(force=False, time=None)
    of_results: tuple[tuple[str, Callable[..., int], str], ...] = (
        ("render", _render, "write the page of results, and print their table"),
        ("tables", _tables, "print the tables of results in Markdown"),
        ("figures", _figures, "write the figures of results as SVG"),
    )
    for name, run, text in of_results:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("results", type=Path, metavar="RESULTS.json")
        if name != "tables":
            shown = "PAGE.html" if name == "render" else "DIR"
            command.add_argument("--out", type=Path, required=True, metavar=shown)
    _add_works(commands)
    commands.add_parser("benchmark", help="run a measurement by its name; without one, list them")
    return parser


def _add_works(commands: Any) -> None:
    """Declare what reads finished work directories."""
    of_works: tuple[tuple[str, Callable[..., int], str], ...] = (
        (
            "embedding",
            _embedding,
            "say how far apart an encoder sees organs and phases, and draw it",
        ),
        ("runs", _runs, "write one page that compares several runs with the first one"),
    )
    for name, run, text in of_works:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        several, shown = ("+", "PAGE.html") if name == "runs" else (None, "MAP.svg")
        command.add_argument("work", nargs=several, type=Path, metavar="WORK")
        command.add_argument("--out", type=Path, required=True, metavar=shown)


def _source(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from research.compare import Source

    if known.data:
        flags["ingest.data"] = json.dumps(known.data)
    if known.device:
        flags["device"] = known.device
    return Source(known.protocol, flags, known.work)


def _wanted(known: argparse.Namespace) -> Any:
    from research.compare import Wanted

    return Wanted(tuple(known.only), tuple(known.seeds))


def _compare(known: argparse.Namespace, flags: dict[str, str]) -> int:
    from research.compare import PAGE, run_comparison
    from sacl.commands import engine_of

    if known.workers is None and known.engine in (None, "local"):
        known.workers = 1
    source = _source(known, flags)
    failed = run_comparison(source, _wanted(known), engine_of(known))
    page = str(source.grid().protocol.work / PAGE)
    print(json.dumps({"page": page, "failed": failed}) if known.json else f"page: {page}")
    return 1 if failed else 0


def _list(known: argparse.Namespace, flags: dict[str, str]) -> int:
    from research.compare import listing, listing_text

    entries = listing(_source(known, flags).grid(), _wanted(known))
    print(json.dumps(entries) if known.json else listing_text(entries))
    return 0


def _cell(known: argparse.Namespace, flags: dict[str, str]) -> int:
    from research.grid import run_cell
    from sacl.progress import say

    grid = _source(known, flags).grid()
    by_name = {cell.name: cell for cell in grid.cells}
    if known.name not in by_name:
        raise ConfigError(f"--name: no cell '{known.name}'; see python -m research list")
    try:
        run_cell(grid, by_name[known.name])
    except SaclError as error:
        say(f"{known.name}: failed, {error}")
        return 1
    return 0


def _render(known: argparse.Namespace, _flags: dict[str, str]) -> int:
    from research.page import page
    from research.results import read_results
    from research.tables import as_text
    from sacl.files.atomic import write_text

    results = read_results(known.results)
    write_text(known.out, page(results))
    print(as_text(results))
    return 0


def _tables(known: argparse.Namespace, _flags: dict[str, str]) -> int:
    from research.results import read_results
    from research.tables import as_markdown

    print(as_markdown(read_results(known.results)))
    return 0


def _figures(known: argparse.Namespace, _flags: dict[str, str]) -> int:
    from research.charts import alone, charts
    from research.figures import OF_PROTOCOL
    from research.results import read_results
    from sacl.files.atomic import write_text

    results = read_results(known.results)
    name = results.protocol.name.removeprefix("compare-")
    own = OF_PROTOCOL.get(results.protocol.name, {})
    drawings = charts(results) | {kind: draw(results) for kind, draw in own.items()}
    for kind, drawing in drawings.items():
        write_text(known.out / f"{name}-{kind}.svg", alone(drawing))
        print(f"wrote {name}-{kind}.svg")
    return 0


def _embedding(known: argparse.Namespace, _flags: dict[str, str]) -> int:
    from research.charts import alone
    from research.embedding import embedding_of_work, map_of, separabilities
    from sacl.files.atomic import write_text

    embedding = embedding_of_work(known.work)
    print("told apart by    classes  silhouette  named rightly  by guessing")
    for row in separabilities(embedding):
        figures = f"{row.silhouette:<10.2f}  {row.accuracy:<13.2f}  {row.chance:.2f}"
        print(f"{row.what:<15}  {row.classes:<7}  {figures}")
    write_text(known.out, alone(map_of(embedding, seed=0)))
    return 0


def _runs(known: argparse.Namespace, _flags: dict[str, str]) -> int:
    from research.side_by_side import report_runs

    print(f"page: {report_runs(known.work, known.out)}")
    return 0


def _benchmark(words: Sequence[str]) -> int:
    """Run a measurement as its own program, or list them."""
    names = sorted(path.stem for path in BENCHMARKS.glob("[a-z]*.py"))
    if not words:
        print("\n".join(names))
        return 0
    if words[0] not in names:
        raise ConfigError(f"no benchmark '{words[0]}'; there are {', '.join(names)}")
    sys.argv = list(words)
    runpy.run_module(f"research.benchmarks.{words[0]}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes of cells too
    sys.exit(main())
