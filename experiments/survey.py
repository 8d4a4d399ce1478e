"""The survey's open problems, one after the other: a verdict on each, and a page of figures.

`python -m experiments.survey` runs all 23, or those named; with --jobs 2, two at a time, a process
each. Each keeps its own folder, so that after an interruption --resume runs only what is missing.
Writes runs/survey/: report.md with the table, figures.png, result.json.
"""

import dataclasses
import importlib
import json
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import tyro
from matplotlib.image import imread
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rlhf_jax as rj

CHALLENGES = Path(__file__).resolve().parent / "challenges"
sys.path.insert(0, str(CHALLENGES))
import protocol  # noqa: E402  it lies beside the challenges, which are scripts too

SLUGS = tuple(protocol.PROBLEMS)
PAGE = """# The survey's open problems, measured

{count} of the 23 problems of Casper et al. 2023, each with a sound run, a defect swapped in, and
claims whose thresholds were fixed before; seeds from {first_seed} on{fast}. {said}; {seconds:.0f} s
in all. A toy shows a mechanism, and not how common it is in large models.

{table}

![](figures.png)

{figures}
"""
MISSING = "missing"  # in place of a result, where there is no script
HEADER = (
    *("section", "problem", "kind", "verdict", "claims"),
    *("first claim", "measured", "seeds", "s"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """All open problems, or those named. A folder that exists needs --resume or --overwrite."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Some of the problems; by default all 23."""
    run_dir: Path = Path("runs/survey")
    seeds: int | None = None
    """How many for each; by default as many as each is scored with."""
    first_seed: int = 1000
    fast: bool = False
    """Fewer seeds and smaller sizes, for a first look."""
    jobs: int = 1
    """How many at a time, a process each."""
    resume: bool = False
    """Runs only what has no result yet; the settings must be the same."""
    overwrite: bool = False


def there() -> list[str]:
    """The problems that have a script, in the survey's order."""
    return [slug for slug in SLUGS if (CHALLENGES / f"{_module(slug)}.py").is_file()]


def _module(slug: str) -> str:
    return slug.replace("-", "_")


def _left_out(result: dict) -> str:
    return f"Left out: {out}\n\n" if (out := result.get("left_out")) else ""


def row(slug: str, result: dict | str) -> list[str]:
    """A line of the table: of a result, or of the word for there being none."""
    if isinstance(result, str):
        return ["", slug, "", result, *5 * [""]]
    passed = sum(claim["verdict"] == "PASS" for claim in result["claims"])
    first = result["claims"][0]
    return [
        result["section"],
        slug,
        result["kind"],
        result["verdict"],
        f"{passed}/{len(result['claims'])}" + (", in part" if result.get("left_out") else ""),
        first["text"],
        "{:.3g} [{:.3g}, {:.3g}]".format(*protocol.numbers(first)),
        str(result["seeds"]),
        f"{result['seconds']:.0f}",
    ]


def kept(slug: str, config: Config) -> dict | None:
    """The result of one problem that an earlier run with the same settings has left."""
    path = config.run_dir / slug / "result.json"
    if not (config.resume and path.is_file()):
        return None
    result = json.loads(path.read_text())
    wanted = (config.first_seed, config.fast, config.seeds or result["seeds"])
    return result if wanted == tuple(result[x] for x in ("first_seed", "fast", "seeds")) else None


def one(slug: str, config: Config) -> dict:
    """Runs one problem, in a folder of its own."""
    folder = config.run_dir / slug
    settings = protocol.Config(folder, config.seeds, config.first_seed, config.fast, overwrite=True)
    return protocol.run(importlib.import_module(_module(slug)).CHALLENGE, settings)


def each(names: Sequence[str], config: Config) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The problems, each with what returns its result: in turn, or as they are done."""
    if config.jobs == 1:
        yield from ((slug, partial(one, slug, config)) for slug in names)
        return
    # Spawned, for jax has threads, which a fork would lose.
    pool = ProcessPoolExecutor(
        config.jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        slugs = {pool.submit(one, slug, config): slug for slug in names}
        yield from ((slugs[done], done.result) for done in as_completed(slugs))
    except BaseException:  # Ctrl-C may be told to this process alone; those at work would go on.
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def contact_sheet(results: Sequence[dict], folder: Path) -> None:
    """All figures on one page."""
    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    figure, _ = rj.report.new_figure(1, width=7.2 * columns, height=3.2 * lines)
    figure.clear()
    for number, result in enumerate(results, 1):
        axis = figure.add_subplot(lines, columns, number)
        axis.imshow(imread(folder / result["slug"] / "figure.png"), interpolation="antialiased")
        axis.set_title(f"{result['section']} {result['slug']}: {result['verdict']}", fontsize=11)
        axis.set_axis_off()
    rj.report.save_figure(figure, folder / "figures.png")


def write(run: rj.runs.Run, found: Mapping[str, dict | str], failed: dict, config: Config) -> str:
    """The survey's own files; returns a line that counts the verdicts."""
    results = [result for result in found.values() if isinstance(result, dict)]
    missing = [slug for slug, result in found.items() if result == MISSING]
    counts = dict.fromkeys(("PASS", "FAIL", "INCONCLUSIVE"), 0)
    counts |= Counter(result["verdict"] for result in results)
    about = {"verdicts": counts, "failed": failed, "missing": missing, "problems": results}
    run.write_json("result.json", about)
    if results:
        contact_sheet(results, run.folder)
    said = [f"{count} {name}" for name, count in counts.items()]
    said += [f"{len(x)} {name}" for name, x in (("not run", failed), ("missing", missing)) if x]
    page = PAGE.format(
        count=len(results),
        first_seed=config.first_seed,
        fast=", --fast: fewer and smaller" if config.fast else "",
        seconds=sum(result["seconds"] for result in results),
        said=", ".join(said),
        table=rj.report.table([row(*both) for both in found.items()], HEADER),
        figures="\n\n".join(
            f"## {x['section']} {x['slug']}\n\n{x['claim']}\n\n{_left_out(x)}"
            f"![]({x['slug']}/figure.png)"
            for x in results
        ),
    )
    (run.folder / "report.md").write_text(page, encoding="utf-8")
    return ", ".join(said)


def main(config: Config) -> None:
    """Run, judge, write, show."""
    began, console = time.perf_counter(), Console()
    if unknown := [name for name in config.names if name not in SLUGS]:
        raise ValueError(f"no such problem: {', '.join(unknown)}. There are: {', '.join(SLUGS)}")
    if config.jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {config.jobs}")
    free = ("run_dir", "resume", "overwrite", "names", "jobs")
    how = {"resume": config.resume, "overwrite": config.overwrite, "free": free}
    run = rj.runs.start(config.run_dir, config, **how)
    # With those that are not asked for, but there.
    found = {slug: kept(slug, config) or MISSING for slug in SLUGS}
    names = [slug for slug in SLUGS if slug in (config.names or SLUGS)]
    found = {slug: x for slug, x in found.items() if slug in names or x != MISSING}
    todo, failed = [slug for slug in there() if found.get(slug) == MISSING], {}
    for number, (slug, result) in enumerate(each(todo, config), 1):
        console.print(f"[dim]{number}/{len(todo)} {slug}[/]")
        try:
            found[slug] = result()
        except Exception as error:  # One that breaks must not cost the others.
            failed[slug] = f"{type(error).__name__}: {error}"
            found[slug] = "not run"
            console.print(f"{slug}: {failed[slug]}", style="red", markup=False)
        else:
            console.print(f"  {found[slug]['verdict']}, {found[slug]['seconds']:.0f} s")
            if said := _left_out(found[slug]).strip():
                console.print(f"  {said}", style="yellow", markup=False)
    said = write(run, found, failed, config)
    shown, few = Table(box=None), ("problem", "verdict", "claims", "measured")
    for name in few:
        shown.add_column(name, no_wrap=True)
    for both in found.items():
        cells = dict(zip(HEADER, row(*both), strict=True))
        shown.add_row(*(escape(cells[name]) for name in few))
    console.print(shown)
    seconds = time.perf_counter() - began
    console.print(f"{said}; {seconds:.0f} s. Report: {run.folder / 'report.md'}")
    if failed:
        raise RuntimeError(f"not run: {', '.join(failed)}; --resume tries again")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume runs what is missing")
