"""What a step costs against the batch, the length, the model's size and the number of devices.

Each point is a process of its own, as ``step.py`` runs. The devices are simulated: they share this
machine's cores, so that their curve shows what cutting the batch costs and not what it gains.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

# Swept around 4 prompts, 8 answers each, 8 + 16 tokens, of the toy size, on one device.
SWEEPS = {
    "batch": [{"prompts": n} for n in (1, 2, 4, 8, 16, 32)],
    "length": [{"response_len": n} for n in (16, 32, 64, 128, 256)],
    "size": [{"size": size, "group": 4} for size in ("toy", "tiny", "135m")],
    "devices": [{"devices": n} for n in (1, 2, 4)],
}
AXES = {
    "batch": "sequences",
    "length": "tokens a sequence",
    "size": "GFLOP a step",
    "devices": "simulated devices",
}


def command(point: dict, task: str, steps: int) -> list[str]:
    """Of a point's process."""
    settings = {"task": task, "steps": steps} | point
    flags = [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    return [sys.executable, "-m", "experiments.benchmarks.step", *flags]


def measured(folder: Path, task: str = "grpo", steps: int = 5) -> dict[str, list[dict]]:
    """All points, and a figure of them in the folder."""
    found = {}
    for name, points in SWEEPS.items():
        found[name] = []
        for point in points:
            devices = point.get("devices", 1)
            flag = f"--xla_force_host_platform_device_count={devices}"
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
            done = subprocess.run(
                command(point, task, steps),
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            if done.returncode:
                raise RuntimeError(f"{name} {point}: {done.stderr.strip()[-500:]}")
            found[name].append(point | json.loads(done.stdout.splitlines()[-1]))
            last = found[name][-1]
            print(
                f"{name:8} {point}: {last['median_step_s']:.3f} s, {last['peak_rss_mb']:.0f} MB",
                flush=True,
            )
    plot(found, folder / "curve.png")
    return found


def place(name: str, point: dict) -> float:
    """Where on its axis a point stands."""
    if name == "batch":
        return point["prompts"] * point.get("group", 8)
    if name == "length":
        return point["response_len"] + 8
    return point["devices"] if name == "devices" else point["flops_per_step"] / 1e9


def plot(found: dict[str, list[dict]], path: Path) -> None:
    """Time and memory against each of them."""
    # One scale a row: what is nearly flat is seen to be.
    figure, axes = plt.subplots(
        2, len(found), figsize=(3.2 * len(found), 5.2), sharey="row", squeeze=False
    )
    rows = (("median_step_s", "seconds a step"), ("peak_rss_mb", "peak memory, MB"))
    for column, (name, points) in enumerate(found.items()):
        where = [place(name, point) for point in points]
        for row, (what, label) in enumerate(rows):
            ax = axes[row, column]
            ax.plot(where, [point[what] for point in points], marker="o")
            ax.set(xscale="log", yscale="log", xlabel=AXES[name])
            ax.set_xticks(where, [f"{x:.3g}" for x in where])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
            ax.grid(axis="y", which="major", alpha=0.3)
            if column == 0:
                ax.set_ylabel(label)
    axes[1, 0].set_ylim(500, None)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
