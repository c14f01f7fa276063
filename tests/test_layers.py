"""The core knows no Ray, MLflow or Hydra; jobs stay thin; no artifact is ever unpickled; files stay readable."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELL = {"ray", "mlflow"}
HYDRA = {"hydra", "omegaconf"}
ORDER = [
    {"types", "item_vectors", "errors", "dataclass_io", "cluster_config", "durable", "catalogue"},
    {"media", "datasets", "towers"},
    {"training", "retrieval", "ranking", "feedback", "evaluation", "bundle", "new_items", "rollout"},
    {"config"},
    {"pipelines"},
]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


ALL_FILES = python_files("avrec_ray", "jobs", "serve_apps")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "avrec_ray").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", python_files("avrec_ray"), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_core_imports_no_shell(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    if package_of(path) != "pipelines":
        assert not roots & SHELL
    if package_of(path) not in {"config", "pipelines"}:
        assert not roots & HYDRA
    assert not roots & {"pickle", "joblib", "dill"} | (roots & {"serve_apps", "jobs"})


@pytest.mark.parametrize("path", python_files("avrec_ray"), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_import_only_downwards(path: Path) -> None:
    level = {name: index for index, names in enumerate(ORDER) for name in names}
    own = level.get(package_of(path))
    if own is None:  # avrec_ray/__init__.py
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "avrec_ray" and len(parts) > 1:
            assert level[parts[1]] <= own, f"{path.name} (level {own}) imports {name} (level {level[parts[1]]})"


@pytest.mark.parametrize("path", python_files("jobs"), ids=lambda p: p.name)
def test_jobs_are_short_and_define_only_main(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 50
    defined = [n.name for n in ast.parse(text).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert defined in ([], ["main"])


@pytest.mark.parametrize(
    "path", python_files("avrec_ray", "jobs", "serve_apps"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320


def test_files_have_a_readable_median() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in python_files("avrec_ray", "jobs", "serve_apps"))
    assert lengths[len(lengths) // 2] <= 150


@pytest.mark.parametrize(
    "path", python_files("avrec_ray", "jobs", "serve_apps"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_loads_pickle(path: Path) -> None:
    text = path.read_text()
    # Weights of an installed package that are no safetensors, by the unpickler that makes tensors alone.
    text = text.replace('torch.load(path, map_location="cpu", weights_only=True)', "")
    for call in ("pickle.load", "torch.load(", "joblib.load", "allow_pickle=True", "yaml.load(", "shell=True"):
        assert call not in text
