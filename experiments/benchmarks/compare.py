"""The same training step by this library and by others, taking turns in one run on one machine.

Peers run in environments of their own; without ``--trl-python`` or ``--tunix-python`` they are left
out. All processes of a case stay alive, and one at a time takes a step; this machine's best matrix
product is measured in the same rounds, and what others used of the machine meanwhile. Where torch
can run on one thread or two, both are tried and the faster is kept. Writes runs/compare/.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

import rlhf_jax as rj
from experiments.benchmarks import curve
from experiments.benchmarks.step import SHAPES
from experiments.benchmarks.step import Config as Step

PEERS = Path(__file__).parent / "peers"
CASES = ("grpo/toy", "grpo/tiny", "grpo/135m", "dpo/toy", "dpo/tiny", "reward/toy", "reward/tiny")
OTHERS = ("rloo/toy", "rloo/tiny", "dpo/135m", "ppo/toy", "ppo/tiny", "ppo/135m")
OURS, LIMIT = "rlhf_jax", "limit"
# How many times as fast as a peer is wanted; and what share of the limit.
WANTED = {
    "grpo/toy": {"trl": 3.5, "tunix": 2.5},
    "grpo/tiny": {"trl": 3.5, "tunix": 3.5, "trl+fast_sampling": 2.0},
    "grpo/135m": {"trl": 1.4, "tunix": 1.4},
    "dpo/toy": {"trl": 1.5, "tunix": 1.5},
    "dpo/tiny": {"trl": 2.0, "tunix": 2.0},
    "reward/toy": {"trl": 1.5},
    "reward/tiny": {"trl": 1.5},
}
WANTED_SHARE = {"grpo/tiny": 0.6, "grpo/135m": 0.6}
# For torch: a thread that waits for another spins for a while, but not for ever, before it sleeps.
# For all: large blocks of memory are of large pages, so that a step does not fault in each 4 KiB.
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "100000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "JAX_PLATFORMS": "cpu",
}
MAX_STEPS = 100  # A peer's data is made beforehand.


@dataclasses.dataclass(frozen=True)
class Config:
    """Ours against theirs. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/compare")
    trl_python: str | None = None  # of an environment with trl 1.16, CPU torch
    tunix_python: str | None = None  # of an environment with google-tunix 0.1.7
    only: tuple[str, ...] = (*CASES, "curve")
    """Cases as task/size (also rloo, ppo and dpo/135m), and "curve", the cost against sizes."""
    rounds: int = 5
    """Timed steps of each; one of all at 135m takes half a minute."""
    overwrite: bool = False


class Contestant:
    """A process that takes steps when asked."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self._log = name, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | ENVIRONMENT,
            )
        self.about = self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        """Its answer, and how many cores others used meanwhile."""
        before = busy_seconds()
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        found = self._answer()
        others = busy_seconds() - before - found["cpu_seconds"]
        return found | {"others_cores": max(0.0, others / found["seconds"])}

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{self.name} ended: {' '.join(last)} (all of it: {self._log})")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def busy_seconds(stat: str | None = None) -> float:
    """Processor seconds that anything has used since the machine started."""
    if stat is None:
        stat = Path("/proc/stat").read_text(encoding="ascii")
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(tick) for tick in stat.splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def case_of(name: str) -> Step:
    """What a case's step is: 4 prompts, 8 answers (at 135m 4), 8 + 16 tokens."""
    task, _, size = name.partition("/")
    if name not in CASES + OTHERS:
        raise ValueError(f"--only: {name!r} is not one of {', '.join((*CASES, *OTHERS, 'curve'))}")
    return Step(task=task, size=size, group=4 if size == "135m" else 8)


def arguments(step: Step, *names: str) -> list[str]:
    """Of a command line."""
    return [word for n in names for word in (f"--{n.replace('_', '-')}", str(getattr(step, n)))]


COMMON = ("task", "prompts", "group", "prompt_len", "response_len")


def llama(size: str) -> str:
    """A shape as transformers and Tunix's scripts name it."""
    shape = SHAPES[size]
    return json.dumps(
        {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "max_position_embeddings": shape.max_length,
            "rms_norm_eps": shape.norm_epsilon,
            "tie_word_embeddings": True,
        }
    )


def contestants(config: Config, step: Step, log: Path, stack: contextlib.ExitStack):
    """The processes of a case by name, started one after the other, ended with the stack."""
    module = [sys.executable, "-m"]
    ours = [*module, "experiments.benchmarks.step", "--turns", *arguments(step, *COMMON, "size")]
    asked = [*arguments(step, *COMMON), "--shape", llama(step.size), "--max-steps", str(MAX_STEPS)]
    commands = {LIMIT: [*module, "experiments.benchmarks.limit"], OURS: ours}
    if config.trl_python and step.task != "ppo":
        commands["trl"] = [config.trl_python, str(PEERS / "trl_step.py"), *asked]
    if config.tunix_python and step.task in ("grpo", "dpo"):
        commands["tunix"] = [config.tunix_python, str(PEERS / "tunix_step.py"), *asked]
    started = {}
    for name, command in commands.items():
        started[name] = Contestant(name, command, log)
        stack.callback(started[name].close)
    return started


def rows_of(started: dict[str, Contestant], step: Step) -> dict[str, tuple[str, str]]:
    """Rows of the table: which process is asked for what."""
    rows = {name: (name, "step") for name in started if name not in (LIMIT, "trl")}
    if "trl" in started:
        tried = [(started["trl"].ask(f"step {n}")["seconds"], n) for n in (2, 1, 2, 1)]
        threads = min(tried)[1]
        rows["trl"] = ("trl", f"step {threads}")
        if step.task in ("grpo", "rloo"):
            rows["trl+fast_sampling"] = ("trl", f"step {threads} fast")
    return rows


def play(config: Config, name: str, log: Path) -> dict[str, Any]:
    """One case: everybody's first step, then rounds in which each takes one."""
    step = case_of(name)
    with contextlib.ExitStack() as stack:
        started = contestants(config, step, log, stack)
        ours = started[OURS]
        first = {n: c.ask("step")["seconds"] for n, c in started.items() if n != LIMIT}
        rows = rows_of(started, step)
        for process, asked in rows.values():
            started[process].ask(asked)  # What the first step left to be warmed.
        parts = {part: [] for part in ours.about["parts"]}
        seen, limits = {row: [] for row in rows}, []
        for number in range(config.rounds):
            limits.append(started[LIMIT].ask("best")["flops_per_s"])
            names = list(rows)
            for row in names[number % len(names) :] + names[: number % len(names)]:
                process, asked = rows[row]
                seen[row].append(started[process].ask(asked))
            for part, times in parts.items():
                times.append(ours.ask(part)["seconds"])
    flops = ours.about["flops"]
    return {
        "case": name,
        "limit_gflops": max(limits) / 1e9,
        "flops_per_step": flops,
        "rows": {
            row: summary(times, seen[OURS], flops / max(limits))
            | {"asked": rows[row][1], "first_step_s": first[rows[row][0]]}
            for row, times in seen.items()
        },
        "parts_s": parts_of(parts, seen[OURS]),
        "wanted": verdicts(name, seen, flops / max(limits)),
    }


def median(steps: list[dict[str, float]], what: str = "seconds") -> float:
    """Of one measurement over the steps."""
    return statistics.median(step[what] for step in steps)


def summary(steps: list[dict], ours: list[dict], least: float) -> dict[str, Any]:
    """A row: its time, and ours in ratio to it; ``least`` is the seconds at the limit."""
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(steps, ours, strict=True)]
    return {
        "median_step_s": median(steps),
        "cpu_s": median(steps, "cpu_seconds"),
        "times_as_long_as_ours": median(steps) / median(ours),
        "lowest_and_highest": [min(ratios), max(ratios)],
        "share_of_limit": least / median(steps),
        "peak_rss_mb": max(step["peak_rss_mb"] for step in steps),
        "others_cores": median(steps, "others_cores"),
    }


def parts_of(parts: dict[str, list[float]], steps: list[dict]) -> dict[str, float]:
    """Seconds of generation, reference and update; the update is what the others leave."""
    found = {part: statistics.median(times) for part, times in parts.items()}
    whole = found.pop("all but generate", None) or median(steps)
    found["update"] = whole - found.get("reference", 0.0)
    return found | {"parts together": sum(found.values()), "step": median(steps)}


def verdicts(name: str, seen: dict[str, list[dict]], least: float) -> list[dict[str, Any]]:
    """What is wanted of this case, what was found, and whether that is enough."""
    ours = median(seen[OURS])
    wanted = [
        (f"times as fast as {peer}", least_ratio, median(seen[peer]) / ours)
        for peer, least_ratio in WANTED.get(name, {}).items()
        if peer in seen
    ]
    if name in WANTED_SHARE:
        wanted.append(("share of the limit", WANTED_SHARE[name], least / ours))
    return [{"what": w, "wanted": a, "found": b, "met": b >= a} for w, a, b in wanted]


def markdown(results: list[dict[str, Any]]) -> str:
    """Tables for people."""
    lines = ["| case | who | s a step | CPU s | ours is x times as fast | of the limit | first s |"]
    lines[0] += " peak MB | others' cores |"
    lines.append("|" + " --- |" * 9)
    for result in results:
        for name, row in result["rows"].items():
            low, high = row["lowest_and_highest"]
            ratio = (
                "" if name == OURS else f"{row['times_as_long_as_ours']:.2f} ({low:.2f}-{high:.2f})"
            )
            asked = row["asked"].split()[1:2]
            name += f", {asked[0]} threads" if asked else ""
            lines.append(
                f"| {result['case']} | {name} | {row['median_step_s']:.3f} | {row['cpu_s']:.2f} | "
                f"{ratio} | {row['share_of_limit']:.0%} | {row['first_step_s']:.1f} | "
                f"{row['peak_rss_mb']:.0f} | {row['others_cores']:.2f} |"
            )
    lines += ["", "| case | part | s |", "|" + " --- |" * 3]
    for result in results:
        lines += [f"| {result['case']} | {k} | {v:.3f} |" for k, v in result["parts_s"].items()]
    lines += ["", "| case | wanted | at least | found | |", "|" + " --- |" * 5]
    for result in results:
        lines += [
            f"| {result['case']} | {w['what']} | {w['wanted']:.2f} | {w['found']:.2f} | "
            f"{'met' if w['met'] else 'missed'} |"
            for w in result["wanted"]
        ]
    return "\n".join(lines)


def main(config: Config) -> None:
    """All cases, then the tables."""
    cases = [name for name in config.only if name != "curve"]
    for name in cases:
        case_of(name)  # Names what is wrong before an hour has gone.
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    results, failed = [], {}
    for name in cases:
        try:
            results.append(play(config, name, run.folder / "log.txt"))
        except RuntimeError as error:  # One of them ended: the other cases are still worth having.
            failed[name] = str(error)
            print(f"{name} failed: {error}\n", flush=True)
        else:
            print(markdown(results[-1:]) + "\n", flush=True)
        run.write_json("result.json", {"cases": results, "failed": failed})
        (run.folder / "report.md").write_text(markdown(results) + "\n", encoding="utf-8")
    if "curve" in config.only:
        run.write_json("curve.json", curve.measured(run.folder))
    if failed:
        raise RuntimeError(f"written to {run.folder} without {', '.join(failed)}, which failed")
    print(f"written to {run.folder}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
