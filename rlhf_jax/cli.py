"""The command ``rlhf-jax``: it parses and prints, and functions of the library do the work."""

import dataclasses
import json
import sys
from collections.abc import Sequence

import jax
import tyro
from rich.console import Console

from rlhf_jax import planning

__all__ = ["PlanOptions", "main"]

_USAGE = """usage: rlhf-jax COMMAND [options]

commands:
  plan    compile a training step for a TPU or GPU topology that is not here: does it fit, and
          what would it take? Its options: rlhf-jax plan --help
"""


@dataclasses.dataclass(frozen=True)
class PlanOptions(planning.Workload):
    """Does a training step fit a topology, and what would it take? No accelerator is needed.

    Exit status: 0 if it fits, 1 if it does not, 2 if something asked for is impossible.

    Attributes:
        model: smollm2-135m, qwen2.5-0.5b, qwen2.5-7b, llama-3-8b or llama-3-70b.
        topology: such as v5e:16x16, v5p:4x4x4, h100:1x1x8 (slices, hosts, GPUs), cpu:8 (simulated);
            or v5e alone, for the fewest chips that would do.
        mesh: such as fsdp=16,tensor=16; what is left over is data. By default all chips are fsdp.
        memory_gib: usable memory of a chip, if other than the table's.
        compile: whether to compile; else it is arithmetic, at once.
        json: whether to print JSON.
    """

    model: str = "llama-3-8b"
    topology: str = "v5e:16x16"
    mesh: str | None = None
    memory_gib: float | None = None
    compile: bool = True
    json: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: by default the process's.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] != "plan":
        print(f"rlhf-jax: no command {arguments[0]!r}\n\n{_USAGE}", end="", file=sys.stderr)
        return 2
    try:
        options = tyro.cli(PlanOptions, prog="rlhf-jax plan", args=arguments[1:])
        return _plan(options)
    except ValueError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        return 2


def _plan(options: PlanOptions) -> int:
    jax.config.update("jax_platforms", "cpu")  # A plan needs no accelerator, and must not take one.
    own = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    fields = {field.name: own.pop(field.name) for field in dataclasses.fields(planning.Workload)}
    as_json = own.pop("json")
    with Console(stderr=True).status(
        "compiling: a minute or more" if options.compile else "adding"
    ):
        found = planning.plan(planning.Workload(**fields), **own)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for line in found.table().splitlines():
            style = "bold red" if "DOES NOT FIT" in line else None
            console.print(line, style=style, markup=False)
    return 0 if found.fits else 1


if __name__ == "__main__":
    sys.exit(main())
