"""The README promises commands and paths: each must exist."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from avrec_ray import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python -m jobs\.(\w+)((?: [\w.]+=\S+)*)", README)


@pytest.fixture(autouse=True)
def schema() -> None:
    config.register()


@pytest.mark.parametrize(("job", "overrides"), COMMANDS)
def test_every_job_exists_and_its_overrides_compose(job: str, overrides: str) -> None:
    assert (ROOT / "jobs" / f"{job}.py").is_file()
    values = [value.strip("`").rstrip("`.,") for value in overrides.split()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config.to_typed(compose(job, overrides=values))


def test_every_named_job_exists() -> None:
    (listing,) = re.findall(r"`python -m jobs\.<name> \[overrides\]`: (.*?)\. Settings", README, re.DOTALL)
    named = re.findall(r"`(\w+)`", listing)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "ui", "serve"} <= named <= targets


def test_every_link_and_every_path_of_the_tree_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    (tree,) = re.findall(r"```\n(avrec_ray/\n.*?)```", README, re.DOTALL)
    inner = [f"avrec_ray/{name}" for name in re.findall(r"^  ([\w./]+)", tree, re.MULTILINE)]
    outer = re.findall(r"^([\w.]+/)", tree, re.MULTILINE)
    missing = [path for path in [*links, *inner, *outer] if not (ROOT / path).exists()]
    assert not missing
    assert len(inner) > 10
