"""The functions of the package: the same bytes and numbers as the commands, errors by kind, progress, Ctrl-C."""

import json
import pathlib
import re
import subprocess

import pytest
import tqdm

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HEAD = "import coppice, json, os, pathlib, signal, sys\nfolder, models = map(pathlib.Path, sys.argv[1:3])\n"


def test_functions_do_what_the_commands_do(environment, core, models, tmp_path, contents):
    """Every option that changes bytes arrives, whatever type its value has."""
    shown = environment.python(
        HEAD
        + """
for name, options in {
    "copies": {"experts": 7, "select": "uniform", "seed": 3, "max_shard_bytes": "200KB"},
    "noise": {"experts": "1.5x", "expert_init": "copy_noise:lambda=0.5", "order": "siblings"},
}.items():
    done = coppice.expand(str(models / "tiny"), folder / name, **options, threads=2, progress=False)
    assert done.out == folder / name and done.bytes_written > 0 and not done.missing_parts, done
    assert coppice.verify(models / "tiny", folder / name).ok
converted = coppice.convert([models / "dense"], folder / "converted", experts=4, top_k=2, layers=[1])
assert converted.families[0] == "qwen3" and (converted.experts, converted.top_k) == (4, 2)
assert coppice.verify(models / "dense", folder / "converted").ok
grown = coppice.inspect(folder / "copies")
print(json.dumps({"experts": grown.experts, "inspect": grown.details, "cost": coppice.cost(models / "tiny", tokens_before=1e9).details}))
""",
        tmp_path,
        models,
    )
    commands = {
        "copies": ["expand", models / "tiny", "--experts", "7", "--select", "uniform", "--seed", "3", "--max-shard-bytes", "200KB"],
        "noise": ["expand", models / "tiny", "--experts", "1.5x", "--expert-init", "copy_noise:lambda=0.5", "--order", "siblings"],
        "converted": ["convert", models / "dense", "--experts", "4", "--top-k", "2", "--layers", "1"],
    }
    for name, (command, model, *options) in commands.items():
        subprocess.run([core, command, model, tmp_path / f"{name}-of-program", *options], check=True, capture_output=True)
        assert contents(tmp_path / name) == contents(tmp_path / f"{name}-of-program")
    shown = json.loads(shown)
    assert shown["experts"] == 7
    for of, command in {"inspect": ["inspect", tmp_path / "copies"], "cost": ["plan", models / "tiny", "--tokens-before", "1e9"]}.items():
        assert shown[of] == json.loads(subprocess.run([core, *command, "--json"], check=True, capture_output=True).stdout)


def test_a_dry_run_writes_nothing_and_has_the_plan(environment, models, tmp_path):
    environment.python(
        HEAD + "done = coppice.expand(models / 'tiny', folder / 'out', dry_run=True); assert done.out is None and done.bytes_written == 0 and done.details['plan']['experts'] == [4, 8], done",
        tmp_path,
        models,
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "classes", "says"),
    [
        ("expand(tiny, out, expert='2x')", "UsageError ValueError", ["'expert': is not an option of 'expand'", "did you mean 'experts'"]),
        ("expand(tiny, out, expert_inti='copy')", "UsageError ValueError", ["did you mean 'expert_init'"]),
        ("expand(tiny, out, json=True)", "UsageError ValueError", ["'json': is not an option"]),
        ("expand(None, out)", "UsageError ValueError", ["model: None; wanted a path"]),
        ("expand(tiny, out, experts=['2x', '3x'])", "UsageError ValueError", ["experts: found a list of 2 values; wanted one value"]),
        ("expand(tiny, out, undo='yes')", "UsageError ValueError", ["undo: found a value; wanted true or false"]),
        ("expand(tiny, out, seed=True)", "UsageError ValueError", ["seed: found true or false; wanted a value (integer)"]),
        ("expand(tiny, out, seed=object())", "UsageError ValueError", ["seed: found a value of type <class 'object'>"]),
        ("expand(tiny, out, seed=1.5)", "UsageError ValueError", ["--seed: found '1.5'; wanted an integer"]),
        ("expand(tiny, out, metric='fisher')", "UsageError ValueError", ["metric: there is no 'fisher'; known: "]),
        ("expand(tiny, out, metric='load')", "UsageError ValueError", ["--metric: it has no effect here"]),
        ("expand(tiny, tiny)", "UsageError ValueError", ["is the input"]),
        ("expand(out, out)", "NotFoundError FileNotFoundError OSError", ["does not exist"]),
        ("expand(tiny, out, config=out)", "NotFoundError OSError", [str("out")]),
        ("expand(broken, out)", "FormatError ValueError", ["config.json"]),
        ("expand(tiny, '/proc/out')", "IoError OSError", ["/proc"]),
        ("verify(tiny, tiny, function='tokens')", "UnsupportedError NotImplementedError", ["core build"]),
        ("cost(tiny, measure=True)", "UnsupportedError NotImplementedError", ["core build"]),
        ("verify(tiny, dense)", "Error", []),
        ("expand(tiny, out, scores='')", "UsageError ValueError", ["scores: found an empty text; wanted a value (path)"]),
        ("expand(tiny, 'a\\0b')", "UsageError ValueError", ["out: found a text with a NUL character"]),
        ("inspect([tiny, dense])", "UsageError ValueError", ["model: found a list of 2 values"]),
    ],
)
def test_errors_have_a_class_for_each_kind(environment, models, tmp_path, call, classes, says):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    shown = environment.python(
        HEAD
        + f"""
tiny, dense, out, broken = models / "tiny", models / "dense", folder / "out", folder / "broken"
try:
    coppice.{call}
except coppice.Error as error:
    print(*[c.__name__ for c in type(error).__mro__])
    print(error)
""",
        tmp_path,
        models,
    )
    found, _, message = shown.partition("\n")
    assert set(classes.split()) <= set(found.split()), shown
    assert not [text for text in says if text not in message], message
    assert not (tmp_path / "out").exists()


def test_names_of_files_need_not_be_utf8(environment, models, tmp_path):
    environment.python(
        HEAD
        + """
out = os.fsdecode(os.fsencode(folder) + b"/\\xff")
done = coppice.expand(models / "tiny", out)
assert str(done.out) == out and os.path.isdir(out), done
try:
    coppice.expand(models / "tiny", out)
    sys.exit("it was written twice")
except coppice.UsageError as error:
    assert "exists already" in str(error)
""",
        tmp_path,
        models,
    )


def test_a_failed_check_raises_with_all_that_was_found(environment, models, tmp_path):
    environment.python(
        HEAD
        + """
coppice.expand(models / "tiny", folder / "out")
weights = sorted((folder / "out").glob("*.safetensors"))[0]
damaged = bytearray(weights.read_bytes())
damaged[-1] ^= 1
weights.write_bytes(damaged)
try:
    coppice.verify(models / "tiny", folder / "out")
    sys.exit("the damage was not seen")
except coppice.CheckFailedError as error:
    assert not error.result.ok and error.result.problems[0] in str(error), error
assert coppice.verify(models / "tiny", folder / "out", check=False).problems
""",
        tmp_path,
        models,
    )


def test_the_page_can_be_followed(environment, models, tmp_path):
    """The Python of docs/python.md, as it stands there."""
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs/python.md").read_text(), re.S | re.M)
    assert blocks
    (tmp_path / "MODEL").symlink_to(models / "tiny")
    assert "(4, 8) False Not exact: " in environment.python("\n".join(blocks), cwd=tmp_path)


STOPPED = (
    HEAD
    + """
states = []
def tell(state):
    states.append(state)
    if len(states) == 2:
        STOP
try:
    coppice.expand(models / "slow", folder / "out", expert_init="svd_perturb", threads=1, progress=tell, resume=len(sys.argv) > 3)
    sys.exit("it was not stopped")
except EXCEPTION:
    assert 0 < states[-1].done < states[-1].total and states[-1].unit == "bytes", states
"""
)


@pytest.mark.parametrize(
    ("stop", "exception"),
    [("os.kill(os.getpid(), signal.SIGINT)", "KeyboardInterrupt"), ("raise ZeroDivisionError", "ZeroDivisionError")],
    ids=["Ctrl-C", "an exception of the function that is told"],
)
def test_it_stops_cleanly(environment, models, tmp_path, stop, exception):
    script = STOPPED.replace("STOP", stop).replace("EXCEPTION", exception)
    environment.python(script, tmp_path, models)
    assert not list(tmp_path.iterdir())


def test_stopped_work_can_be_continued(environment, core, models, tmp_path, contents):
    script = STOPPED.replace("STOP", "os.kill(os.getpid(), signal.SIGINT)").replace("EXCEPTION", "KeyboardInterrupt")
    environment.python(script, tmp_path, models, "resume")
    assert list(tmp_path.iterdir()) and not (tmp_path / "out").exists()
    resumed = environment.python(
        HEAD + "print(coppice.expand(models / 'slow', folder / 'out', expert_init='svd_perturb', resume=True).details['bytes_resumed'])", tmp_path, models
    )
    assert int(resumed) > 0
    subprocess.run([core, "expand", models / "slow", tmp_path / "whole", "--expert-init", "svd_perturb", "--quiet"], check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["watch", "expand_", "expand_into"])
def test_without_torch_it_says_what_to_install(environment, name):
    shown = environment.python(f"import coppice\ntry: coppice.{name}\nexcept ImportError as error: print(error)")
    assert shown == f"coppice.{name} works on torch modules, and torch is not installed here (pip install torch)\n"


def test_python_goes_on_while_cpp_works(environment, models, tmp_path):
    """The GIL is free, and calls of several threads wait for each other."""
    environment.python(
        HEAD
        + """
import threading
counted = 0
def expand(name):
    coppice.expand(models / name, folder / name, expert_init="svd_perturb", threads=1, progress=False)
threads = [threading.Thread(target=expand, args=[name]) for name in ("slow", "tiny")]
for thread in threads: thread.start()
while any(thread.is_alive() for thread in threads):
    counted += 1
for thread in threads: thread.join()
assert counted > 1000, counted
""",
        tmp_path,
        models,
    )
    assert {path.name for path in tmp_path.iterdir()} == {"slow", "tiny"}


def test_warnings_go_to_logging(environment, models, tmp_path):
    subprocess.run(["cp", "-r", models / "tiny", tmp_path / "model"], check=True)
    (tmp_path / "model/pytorch_model.bin").write_text("")
    shown = environment.python(HEAD + "import logging; logging.basicConfig(stream=sys.stdout); coppice.expand(folder / 'model', folder / 'out')", tmp_path, models)
    assert "WARNING:coppice:left out: pytorch_model.bin: the weights before the change" in shown


def test_a_bar_of_tqdm_is_shown_where_it_is_installed(environment, models, tmp_path):
    """Once, from nothing to all. It is silent without tqdm, which a bare environment lacks, and for short work."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/tqdm").symlink_to(pathlib.Path(tqdm.__file__).parent)
    script = """
coppice.progress._SILENT_SECONDS = float(sys.argv[4])
coppice.expand(models / "slow", folder / sys.argv[3], expert_init="svd_perturb")
"""
    shown = {}
    for name, path, silent in (("without", "", 0), ("short", tmp_path / "site", 1000), ("shown", tmp_path / "site", 0)):
        done = subprocess.run([environment.bin / "python", "-c", HEAD + script, tmp_path, models, name, str(silent)],
                              capture_output=True, text=True, env={**environment.variables, "PYTHONPATH": str(path)}, check=True)
        shown[name] = done.stderr
    assert shown["without"] == shown["short"] == ""
    assert shown["shown"].startswith("\nexpand:   0%") and "\nexpand: 100%" in shown["shown"] and shown["shown"].count("  0%") == 1, shown["shown"]


def test_options_and_types_are_those_of_the_tables(environment):
    """The stub that is checked in, the signatures and the docstrings."""
    tool = subprocess.run([environment.bin / "python", REPOSITORY / "tools/write_stubs", "--check"], capture_output=True, text=True, env=environment.variables)
    assert tool.returncode == 0, tool.stderr
    environment.python("""
import inspect, coppice
for name in ("expand", "convert", "verify", "inspect", "cost"):
    function = getattr(coppice, name)
    lines = function.__doc__.splitlines()
    for section in ("Parameters", "Returns", "Raises", "Notes"):
        assert lines[lines.index(section) + 1] == "-" * len(section)
    for parameter in inspect.signature(function).parameters:
        assert any(line.startswith(f"{parameter} : ") for line in lines), (name, parameter)
    assert max(map(len, lines)) <= 100, name
""")
