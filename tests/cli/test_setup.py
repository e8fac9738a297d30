"""`tools/setup` beside another package manager. apt-get, dpkg-query and id are stand-ins: nothing is installed."""

import hashlib
import os
import pathlib
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LOCKED = "E: Could not get lock {}. It is held by process 4242 (apt-get)"

# Holds a real lock while it works, as apt-get does, and fails at once where another holds it.
APT_GET = """#!/bin/bash
echo "$@" >> {work}/calls
[ ! -s {work}/busy ] || {{ echo "$(head -1 {work}/busy)" >&2; sed -i 1d {work}/busy; exit 100; }}
[ ! -e {work}/broken ] || {{ echo "E: Unable to locate package" >&2; exit 100; }}
exec 8>{work}/apt.lock
flock -n 8 || {{ echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)" >&2; exit 100; }}
case " $* " in *" install "*) sleep 0.5; touch {work}/installed ;; esac
"""
DPKG_QUERY = """#!/bin/bash
[ -e {work}/installed ] || exit 1
for p in "${{@:3}}"; do echo "$p installed"; done
"""


@pytest.fixture
def setup(tmp_path):
    """Starts tools/setup in a world of its own whose environment is made and whose packages are not."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("apt-get", APT_GET), ("dpkg-query", DPKG_QUERY), ("id", "#!/bin/bash\necho 0\n")):
        (programs / name).write_text(text.format(work=tmp_path) if "{work}" in text else text)
        (programs / name).chmod(0o755)
    digest = hashlib.sha256((REPOSITORY / "python" / "requirements.lock").read_bytes()).hexdigest()[:12]
    made = tmp_path / "cache" / f"venv-core-{digest}"
    made.mkdir(parents=True)
    (made / ".complete").touch()

    def start(**environment):
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "COPPICE_CACHE": str(tmp_path / "cache"), **environment}
        return subprocess.Popen([REPOSITORY / "tools" / "setup", "core"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def calls(tmp_path, what):
    return [call for call in (tmp_path / "calls").read_text().splitlines() if f" {what}" in call]


@pytest.mark.parametrize("lock", ["/var/lib/apt/lists/lock", "/var/lib/dpkg/lock-frontend"])
def test_waits_for_a_busy_package_manager_and_says_for_whom(setup, tmp_path, lock):
    (tmp_path / "busy").write_text(LOCKED.format(lock) + "\n")
    status, out, err = end(setup())
    assert status == 0, err
    assert err.count("setup: another package manager is busy; its lock is held by process 4242 (apt-get). Waiting") == 1
    assert len(calls(tmp_path, "update")) == 2 and len(calls(tmp_path, "install")) == 1
    assert "COPPICE_PLOTLY_JS=" in out


def test_waits_for_a_lock_that_is_taken_between_update_and_install(setup, tmp_path):
    process = setup()
    status, _, err = end(process)
    assert status == 0 and "busy" not in err
    (tmp_path / "installed").unlink()
    (tmp_path / "calls").unlink()
    (tmp_path / "bin" / "apt-get").write_text(APT_GET.format(work=tmp_path).replace(
        "exec 8>", f'[[ " $* " != *" install "* || -e {tmp_path}/second ]] || {{ touch {tmp_path}/second; echo "{LOCKED.format("/var/lib/dpkg/lock")}" >&2; exit 100; }}\nexec 8>'))
    status, _, err = end(setup())
    assert status == 0 and "held by process 4242" in err
    assert len(calls(tmp_path, "install")) == 2


def test_gives_up_after_the_time_it_was_given(setup, tmp_path):
    (tmp_path / "busy").write_text((LOCKED.format("/var/lib/apt/lists/lock") + "\n") * 9)
    status, out, err = end(setup(COPPICE_APT_WAIT="2"))
    assert status == 4 and out == ""
    assert "busy for 2 seconds; its lock is held by process 4242 (apt-get)" in err and "COPPICE_APT_WAIT" in err


def test_other_failures_are_not_waited_for(setup, tmp_path):
    (tmp_path / "broken").touch()
    status, _, err = end(setup())
    assert status == 4 and "apt-get update failed" in err and len(calls(tmp_path, "update")) == 1


def test_two_at_once_both_end_well(setup, tmp_path):
    both = [setup(), setup()]
    ends = [end(process) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert all("COPPICE_PLOTLY_JS=" in out for _, out, _ in ends)
