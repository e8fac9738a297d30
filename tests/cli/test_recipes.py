"""The files of recipes/ are settings that `coppice train` takes."""

import pathlib
import tomllib

import pytest

RECIPES = sorted((pathlib.Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_key_is_an_option_of_train(coppice, recipe):
    told = coppice("train", "--help")
    if told.returncode != 0:
        pytest.skip("this build has no trainer")
    for table, keys in tomllib.loads(recipe.read_text()).items():
        if table == "growth":
            continue  # tables of their own, which the run below reads
        for key in keys:
            assert f"--{table}.{key}" in told.stdout


def test_there_are_recipes():
    assert [path.stem for path in RECIPES] == ["continue", "growing", "paper", "scratch"]
