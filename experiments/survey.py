"""The survey's open problems, one after the other: a verdict on each, and a page of figures.

`python -m experiments.survey` runs all that are in experiments/challenges/, or those named; each
keeps its own folder, so that one that is there already is not run again with --resume. Writes
runs/survey/.
"""

import dataclasses
import importlib
import json
import sys
import time
from pathlib import Path

import jax
import tyro
from matplotlib.image import imread
from rich.console import Console
from rich.table import Table

import rlhf_jax as rj

CHALLENGES = Path(__file__).resolve().parent / "challenges"
sys.path.insert(0, str(CHALLENGES))
import protocol  # noqa: E402  it lies beside the challenges, which are scripts too

# In the order of the survey.
SLUGS = (
    "evaluator-selection",
    "evaluator-bias",
    "poisoned-feedback",
    "simple-mistakes",
    "partial-observability",
    "hard-tasks",
    "misled-evaluators",
    "data-collection-bias",
    "cost-quality",
    "feedback-richness",
    "values-not-a-reward",
    "single-reward-society",
    "reward-misgeneralization",
    "reward-overoptimization",
    "rm-evaluation",
    "policy-optimization-difficulty",
    "adversarial-exploitation",
    "goal-misgeneralization",
    "power-seeking",
    "pretraining-bias",
    "mode-collapse",
    "auto-induced-shift",
    "efficiency-overfitting",
)
PAGE = """# The survey's open problems, measured

{count} of the 23 problems of Casper et al. 2023, each with a sound run, a defect swapped in, and
claims whose thresholds were fixed before; seeds from {first_seed}, {seconds:.0f} s in all. A toy
shows a mechanism, and not how common it is in large models.

{table}

{figures}
"""
HEADER = ("section", "problem", "kind", "verdict", "claims", "first claim, measured", "seeds", "s")


@dataclasses.dataclass(frozen=True)
class Config:
    """All open problems, or those named. A folder that exists needs --resume or --overwrite."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Some of the problems; by default all that are there."""
    run_dir: Path = Path("runs/survey")
    seeds: int | None = None
    """How many for each; by default as many as each is scored with."""
    first_seed: int = 1000
    fast: bool = False
    """Fewer seeds and smaller sizes, for a first look."""
    resume: bool = False
    overwrite: bool = False


def there() -> list[str]:
    """The problems that have a script, in the survey's order."""
    return [slug for slug in SLUGS if (CHALLENGES / f"{_module(slug)}.py").is_file()]


def _module(slug: str) -> str:
    return slug.replace("-", "_")


def row(result: dict) -> list[str]:
    """A line of the table."""
    passed = sum(claim["verdict"] == "PASS" for claim in result["claims"])
    first = result["claims"][0]
    return [
        result["section"],
        result["slug"],
        result["kind"],
        result["verdict"],
        f"{passed} of {len(result['claims'])}",
        "{}: {:.3g} [{:.3g}, {:.3g}]".format(first["text"], *protocol.numbers(first)),
        str(result["seeds"]),
        f"{result['seconds']:.0f}",
    ]


def one(slug: str, config: Config) -> dict:
    """The result of one problem, from its folder if it is there and may be."""
    folder = config.run_dir / slug
    settings = protocol.Config(folder, config.seeds, config.first_seed, config.fast)
    path = folder / "result.json"
    if config.resume and path.is_file():
        result = json.loads(path.read_text())
        same = (result["first_seed"], result["fast"]) == (config.first_seed, config.fast)
        if same and config.seeds in (None, result["seeds"]):
            return result
    challenge = importlib.import_module(_module(slug)).CHALLENGE
    return protocol.run(challenge, dataclasses.replace(settings, overwrite=True))


def contact_sheet(results: list[dict], folder: Path) -> None:
    """All figures on one page."""
    columns = 2
    lines = -(-len(results) // columns)
    figure, _ = rj.report.new_figure(1, width=9.6 * columns, height=4.0 * lines)
    figure.clear()
    for number, result in enumerate(results, 1):
        axis = figure.add_subplot(lines, columns, number)
        axis.imshow(imread(folder / result["slug"] / "figure.png"))
        axis.set_title(f"{result['section']} {result['slug']}: {result['verdict']}")
        axis.set_axis_off()
    rj.report.save_figure(figure, folder / "figures.png")


def main(config: Config) -> None:
    """Run, judge, write, show."""
    began, console = time.perf_counter(), Console()
    names = list(config.names) or there()
    if unknown := [name for name in names if name not in there()]:
        raise ValueError(f"no such problem: {', '.join(unknown)}. There are: {', '.join(there())}")
    free = ("run_dir", "resume", "overwrite", "names")
    how = {"resume": config.resume, "overwrite": config.overwrite, "free": free}
    run = rj.runs.start(config.run_dir, config, **how)
    results, failed = [], {}
    for number, slug in enumerate(names, 1):
        console.print(f"[dim]{number}/{len(names)} {slug}[/]")
        try:
            results.append(one(slug, config))
        except Exception as error:  # One that breaks must not cost the others.
            failed[slug] = f"{type(error).__name__}: {error}"
            console.print(f"[red]{slug}: {failed[slug]}[/]")
        else:
            console.print(f"  {results[-1]['verdict']}, {results[-1]['seconds']:.0f} s")
        jax.clear_caches()
    verdicts = [result["verdict"] for result in results]
    counts = {name: verdicts.count(name) for name in ("PASS", "FAIL", "INCONCLUSIVE")}
    run.write_json("result.json", {"verdicts": counts, "failed": failed, "problems": results})
    if not results:
        raise RuntimeError("none of them could be run")
    contact_sheet(results, run.folder)
    page = PAGE.format(
        count=len(results),
        first_seed=config.first_seed,
        seconds=sum(result["seconds"] for result in results),
        table=rj.report.table([row(result) for result in results], HEADER),
        figures="\n\n".join(
            f"## {x['section']} {x['slug']}\n\n{x['claim']}\n\n![]({x['slug']}/figure.png)"
            for x in results
        ),
    )
    (run.folder / "report.md").write_text(page, encoding="utf-8")
    shown = Table(*HEADER)
    for result in results:
        shown.add_row(*row(result))
    console.print(shown)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(
        f"{said}; {time.perf_counter() - began:.0f} s. Report: {run.folder / 'report.md'}"
    )
    if failed:
        raise RuntimeError(f"not run: {', '.join(failed)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
