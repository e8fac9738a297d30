"""Pages of docs/ and the README: tables and pictures are up to date, links lead somewhere, lines are short."""

import os
import pathlib
import re
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PAGES = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
LONGEST = 100


def without_blocks(text):
    """The text without fenced code and program output, with as many lines."""
    return re.sub(r"^ *```.*?^ *```", lambda block: "\n" * block[0].count("\n"), text, flags=re.S | re.M)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", without_blocks(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_tables_are_those_of_the_program():
    done = subprocess.run([REPOSITORY / "tools/write_tables", os.environ["COPPICE_BIN"], "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pictures_are_those_of_their_script():
    done = subprocess.run([REPOSITORY / "tools/draw_pictures", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_simulated_times_are_those_of_the_program():
    done = subprocess.run([REPOSITORY / "tools/write_scaling", os.environ["COPPICE_BIN"], "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_picture_is_shown():
    shown = {name for page in PAGES for name in re.findall(r"pictures/([\w-]+\.svg)", page.read_text())}
    assert shown == {path.name for path in (REPOSITORY / "docs/pictures").glob("*.svg")}


def test_every_page_is_listed():
    listed = set(re.findall(r"\]\((\w+\.md)\)", (REPOSITORY / "docs/README.md").read_text()))
    assert listed == {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}


def test_links_lead_to_files_and_headings():
    broken = []
    for page in [*PAGES, REPOSITORY / "CHANGELOG.md", REPOSITORY / "ARCHITECTURE.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", page.read_text(), re.M):
            path, _, anchor = "".join(link).partition("#")
            target = page.parent / path if path else page
            if not path.startswith("http") and not (target.exists() and (not anchor or anchor in anchors(target))):
                broken.append(f"{page.name}: {path}#{anchor}")
    assert not broken, broken


def test_lines_are_short():
    """Rows of tables, definitions of links, and what programs print have the length that they need."""
    free = re.compile(r"\||\[[^\]]+\]: ")
    long = [f"{page.name}:{number}" for page in PAGES for number, line in enumerate(without_blocks(page.read_text()).splitlines(), 1)
            if len(line) > LONGEST and not free.match(line.lstrip())]
    assert not long, f"lines of more than {LONGEST} columns: {', '.join(long)}"


def test_comparison_with_other_tools_is_backed():
    """Each cell links to its source, or says that nothing is documented or measured; a row may name its measurement."""
    section = (REPOSITORY / "README.md").read_text().split("## How it compares")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) >= 10
    for what, *cells in rows[1:]:
        unbacked = [cell for cell in cells if "](" not in cell and "][" not in cell and cell not in ("not documented", "not measured")]
        assert not unbacked or "bench/results/" in what, f"{what}: {unbacked}"
