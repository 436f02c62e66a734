"""docs/recipes.md says what each recipe holds: its table is compared with what the configuration resolves to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from stabilitylab.cli.train import command
from stabilitylab.config import Config, from_dict, recipes
from stabilitylab.config.layering import _overlays, read_toml

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
TABLES = {
    title: (found[1], re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \|", body, re.M))
    for title, body in SECTIONS
    if (found := re.search(r"^    stablab (train .*)$", body, re.M))
}


def dry_run(arguments: str) -> Config:
    import tomllib

    from click.testing import CliRunner

    done = CliRunner().invoke(command, [*shlex.split(arguments)[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    return from_dict(tomllib.loads(done.output))


def resolved(config: Config, key: str) -> str:
    """A configuration's value as the page writes it."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return (", ".join(config.mitigation) or "none") if key == "mitigation" else str(value)


@pytest.mark.parametrize("title", TABLES)
def test_every_value_in_the_table_is_the_recipes(title: str) -> None:
    arguments, rows = TABLES[title]
    config = dry_run(arguments)
    assert len(rows) > 2
    assert {key: resolved(config, key) for key, _ in rows} == dict(rows)


def test_every_method_and_encoder_of_the_authors_has_a_table() -> None:
    assert len(TABLES) == 6


def test_every_line_of_the_authors_recipes_names_its_source() -> None:
    files = [recipes()["imagefolder"], *sorted(recipes()["imagefolder"].with_suffix("").glob("*.toml"))]
    assert len(files) > 8
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "[")):
                assert re.search(r"# \S+", line), f"{path.name}: {line}"


def test_overlays_go_from_the_method_to_the_encoder_to_both() -> None:
    names = [path.stem for path in _overlays("imagefolder", "swav", "resnet")]
    assert names == ["swav", "resnet", "swav-resnet"]
    assert [path.parent.name for path in _overlays("digits", "swav", "resnet")] == ["small"]
    for path in recipes()["imagefolder"].parent.glob("*/*.toml"):
        read_toml(path)
