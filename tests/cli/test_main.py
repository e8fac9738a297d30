"""The command line itself: help, version, wrong usage with the nearest name, exit statuses, lists."""

import json
import os
import pathlib
import re
import subprocess

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"
COMMANDS = ["inspect", "plan", "score", "expand", "convert", "verify", "tokenize", "train", "eval", "report", "demo", "list"]
CORE_COMMANDS = ["inspect", "plan", "expand", "convert", "verify", "tokenize", "report", "list"]
LISTS = ["families", "expert-init", "router-init", "optimizer-state", "metrics", "selections", "layer-selections", "recipes", "conversions", "scales", "routers",
         "convert-recipes", "files"]


def assert_fails(done, status, *words):
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("coppice: error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_help_is_the_golden_text(coppice):
    done = coppice("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / "help.txt").read_text()


def test_help_of_the_core_build_is_the_golden_text(core):
    assert core("--help").stdout == (GOLDEN / "help_core.txt").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(coppice, command):
    done = coppice(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"coppice {command}: ")
    for option in ["--config FILE.toml", "--quiet", "--help"]:
        assert done.stdout.count(f"\n  {option} ") == 1


def test_version_is_that_of_the_build_file(coppice):
    cmake = (pathlib.Path(__file__).parents[2] / "CMakeLists.txt").read_text()
    version = re.search(r"project\(coppice VERSION ([0-9.]+)", cmake)[1]
    assert coppice("--version").stdout == f"coppice {version}\n"


def test_wrong_usage_is_status_2_and_offers_the_nearest_name(coppice):
    assert_fails(coppice(), 2, "a command is missing", "coppice --help")
    assert_fails(coppice("expnd"), 2, "'expnd'", "did you mean 'expand'?")
    assert_fails(coppice("frobnicate"), 2, "'frobnicate'", "known: inspect, ")
    assert_fails(coppice("--versoin"), 2, "'--versoin'")
    assert_fails(coppice("expand", "a", "b", "--expert", "2x"), 2, "'--expert'", "did you mean '--experts'?")
    assert_fails(coppice("expand", "a"), 2, "OUT: missing")
    assert_fails(coppice("expand", "a", "b", "c"), 2, "'c'")
    assert_fails(coppice("expand", "a", "b", "--seed", "x"), 2, "--seed", "'x'")
    assert_fails(coppice("list", "famlies"), 2, "'famlies'", "did you mean 'families'?")


def test_a_configuration_file_is_checked_like_flags(coppice, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('what = "metrics"\njson = true\n')
    assert "metrics" in json.loads(coppice("list", "--config", config).stdout)
    assert "families" in json.loads(coppice("list", "families", "--config", config).stdout)
    assert coppice("list", "--config", config, "--json=false").stdout.startswith("weight_norm ")
    config.write_text("jsn = true\n")
    assert_fails(coppice("list", "--config", config), 2, "run.toml", "'jsn'", "did you mean 'json'?")
    config.write_text("json = = true\n")
    assert_fails(coppice("list", "--config", config), 3, "run.toml: line 1")
    assert_fails(coppice("list", "--config", tmp_path / "none.toml"), 3, "none.toml")


def test_missing_input_is_status_3(coppice, tmp_path):
    assert_fails(coppice("inspect", tmp_path / "none"), 3, "none")


def test_lists_name_what_the_build_knows(coppice):
    names = [line.split()[0] for line in coppice("list").stdout.splitlines()]
    assert names == LISTS
    assert "glm4_moe" in coppice("list", "families").stdout
    assert "copy_noise:lambda=0.01" in coppice("list", "expert-init").stdout


@pytest.mark.parametrize("what", LISTS)
def test_lists_say_the_same_as_json(coppice, what):
    rows = json.loads(coppice("list", what, "--json").stdout)[what]
    text = coppice("list", what).stdout
    assert rows
    for row in rows:
        assert row["summary"]
        assert re.search(rf"^{re.escape(row['name'])} +{re.escape(row['summary'])}", text, re.MULTILINE)


def test_results_that_cannot_be_written_are_status_4(coppice):
    with open("/dev/full", "w") as full:
        done = coppice("list", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 4
    assert "standard output: cannot be written: No space left on device" in done.stderr


def test_a_reader_that_leaves_is_status_4_and_no_crash(coppice):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        done = coppice("--help", capture_output=False, stdout=broken, stderr=subprocess.PIPE)
    assert done.returncode == 4
    assert "Broken pipe" in done.stderr


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(CORE_COMMANDS)))
def test_the_core_build_says_what_it_lacks(core, command):
    assert_fails(core(command, "--help"), 3, "core build", "make build")


@pytest.mark.parametrize("command", CORE_COMMANDS)
def test_the_core_build_has_the_same_options(core, coppice, command):
    assert core(command, "--help").stdout == coppice(command, "--help").stdout
