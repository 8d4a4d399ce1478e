"""The house of the README: a file imports only from lower layers, or from its own folder."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "rlhf_jax"
LAYERS = [
    {"types", "checks", "placing"},
    {"vocabulary"},
    {
        "sequences",
        "forks",
        "feedback",
        "distributions",
        "assets",
        "configuration",
        "digests",
        "trees",
    },
    {
        "losses",
        "implicit_rewards",
        "advantages",
        "divergences",
        "aggregates",
        "measures",
        "rewards",
    },
    {"humans", "judges", "queries", "models", "sampling", "algorithms"},
    {"worlds", "pipeline", "data", "parallel", "checkpoint", "training", "callbacks", "evaluation"},
    {"pretrained"},
    {"report", "runs", "planning"},
    {"cli"},
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "rlhf_jax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_jax."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("rlhf_jax.")}
    return names


def violations(path: Path, source: str) -> list[str]:
    here = room(path)
    return [
        f"{here} (layer {LAYER[here]}) imports {there} (layer {LAYER[there]})"
        for there in imported_rooms(ast.parse(source))
        if there != here and LAYER[there] >= LAYER[here]
    ]


def test_imports_go_downwards():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert {room(path) for path in files} <= set(LAYER), "a new file needs a layer"
    assert not [line for path in files for line in violations(path, path.read_text())]


def test_an_upward_import_is_found():
    assert violations(PACKAGE / "types.py", "from rlhf_jax.losses import hinge")
    assert violations(PACKAGE / "sampling.py", "import rlhf_jax.models.heads")
    assert not violations(PACKAGE / "runs.py", "from rlhf_jax import training")


def test_flax_modules_live_in_models_alone():
    for path in PACKAGE.rglob("*.py"):
        modules = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        linen = [n for n in modules if n.module == "flax" and {a.name for a in n.names} & {"nnx"}]
        assert not linen or room(path) == "models", path
        assert "flax.linen" not in path.read_text() or room(path) == "models", path
