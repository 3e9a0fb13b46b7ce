"""The commands on studies and rooms: what they print, their exit codes, and one clear sentence for every mistake."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.made_up import environment, install, slug_for, write_room
from working_papers.bench import rooms as rooms_module
from working_papers.bench.record import read_record
from working_papers.bench.rooms import Room
from working_papers.cli import main


@dataclass
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> object:
        return json.loads(self.out)


Invoke = Callable[..., Said]


@pytest.fixture
def invoke(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs the command line in this process, as `working-papers` does."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["working-papers", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        code = ended.value.code
        return Said(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    return run


@pytest.fixture
def write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Room]]:
    """Writes rooms that other distributions seem to offer, for the time of a test."""
    numbers = itertools.count(1)

    def written(**places: str) -> Room:
        slug = slug_for(request.node.name, next(numbers))
        root = tmp_path / f"distribution of {slug}"
        root.mkdir()
        monkeypatch.syspath_prepend(str(root))
        room = write_room(root, slug, **places)
        install(root, slug)
        rooms_module._found.cache_clear()
        return room

    yield written
    rooms_module._found.cache_clear()


def one_sentence(said: Said, code: int) -> str:
    """The message of a command that failed: one line on standard error, nothing on standard output."""
    assert said.code == code
    assert said.out == ""
    assert said.err.startswith("working-papers: ") and said.err.count("\n") == 1
    return said.err


def test_help_names_every_command(invoke: Invoke) -> None:
    for arguments in (["--help"], ["-h"], []):
        said = invoke(*arguments)
        assert said.code == (0 if arguments else 2), "without a command the usage is wrong"
        for name in ("run", "verdicts", "show", "list", "new"):
            assert re.search(rf"\b{name}\b", said.out + said.err)


def test_run_prints_the_verdict_and_show_remembers_it(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    said = invoke("run", room.slug, "--scale", "smoke", "--seeds", "4")
    assert said.code == 0
    assert "HOLDS" in said.out and "New arm beats Old arm by more than 10 %" in said.out
    assert "smoke scale, 4 seeds" in said.out and "peak memory MB a trial" in said.out
    assert f"{room.slug}: trials, 8 trials" in said.err
    figure = re.search(r"figure: (\S+\.svg)", said.out)
    assert figure is not None and Path(figure[1]).exists()
    assert "8 of them stored" in invoke("run", room.slug, "--scale", "smoke", "--seeds", "4").err
    fresh = invoke("run", room.slug, "--scale", "smoke", "--seeds", "1", "--fresh")
    assert fresh.code == 0 and "stored" not in fresh.err and "INCONCLUSIVE" in fresh.out
    sham = invoke("run", room.slug, "--scale", "smoke", "--sham", "--jobs", "1")
    assert sham.code == 0 and "sham control: the method is a stand-in" in sham.out and "HOLDS  The" not in sham.out
    shown = invoke("show", room.slug)
    assert shown.code == 0
    assert "Runs of this installation" in shown.out and "smoke, sham" in shown.out
    assert len(re.findall(r"^ +\d+  \d{4}-\d\d-\d\d \d\d:\d\d  smoke", shown.out, flags=re.MULTILINE)) == 4
    assert f"import: from {room.module} import" in shown.out


def test_a_verdict_that_does_not_hold_is_no_failure(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    (room.folder / "method.py").write_text('def offset(arm):\n    return 1.0 + (arm == "new")\n', encoding="utf-8")
    said = invoke("run", room.slug)
    assert said.code == 0 and "DOES NOT HOLD" in said.out


def test_failed_trials_exit_with_1_and_leave_a_log(invoke: Invoke, write: Callable[..., Room]) -> None:
    broken = write(trial='if trial.arm == "old": raise RuntimeError("on purpose [bold]")')
    said = invoke("run", broken.slug, "--scale", "smoke")
    assert said.code == 1
    assert "could not run: 2 trials failed" in said.out and "HOLD" not in said.out
    assert "old, seed 0 (report): RuntimeError: on purpose [bold]" in said.out
    shown = invoke("show", broken.slug)
    assert shown.code == 0 and "could not run" in shown.out
    assert "Traceback" in shown.out and "on purpose [bold]" in shown.out, "show prints the whole log"


def test_several_rooms_run_one_after_the_other_whatever_becomes_of_the_first(
    invoke: Invoke, write: Callable[..., Room]
) -> None:
    first, second = write(trial="raise ValueError"), write()
    said = invoke("run", first.slug, second.slug, "--scale", "smoke")
    assert said.code == 1 and "could not run" in said.out and "HOLDS" in said.out
    study = first.folder / "study.py"
    study.write_text("raise RuntimeError", encoding="utf-8")
    sys.modules.pop(f"{first.module}.study")
    said = invoke("run", first.slug, second.slug, "--scale", "smoke")
    assert said.code == 1 and "HOLDS" in said.out
    assert f"working-papers: {first.slug}: the study cannot be loaded: RuntimeError" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "normoun"], "there is no room named 'normoun'; did you mean normuon"),
        (["show", "frame-averagin"], "did you mean frame_averaging"),
        (["run", "xyzzy"], "there is no room named 'xyzzy'; `working-papers list` shows all rooms"),
        (["run", "normuon", "--scale", "huge"], "there is no scale 'huge'; the scales are smoke, laptop, paper"),
        (["run", "normuon", "--reference", "--sham"], "--reference goes with the laptop scale"),
        (["run", "normuon", "--reference", "--scale", "smoke"], "--reference goes with the laptop scale"),
        (["run", "normuon", "--reference", "--seeds", "3"], "--reference goes with the laptop scale"),
        (["new", "My-Room"], "'My-Room' is not a name for a room; expected lower case words joined by underscores"),
        (["new", "normuon"], "there is a room named 'normuon' already"),
        (["new", "normuon", "--folder", "somewhere"], "there is a room named 'normuon' already"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_sentence(invoke: Invoke, arguments: list[str], words: str) -> None:
    assert words in one_sentence(invoke(*arguments), 2)


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "normuon", "--seeds", "0"], ["run", "normuon", "--jobs", "x"], ["lst"], ["list", "--jsn"]],
)
def test_wrong_options_exit_with_2(invoke: Invoke, arguments: list[str]) -> None:
    said = invoke(*arguments)
    assert said.code == 2 and "Usage: working-papers" in said.err


def test_a_room_that_does_not_run_yet_says_so(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    (room.folder / "study.py").unlink()
    assert f"{room.slug} has no study yet" in one_sentence(invoke("run", room.slug), 2)
    shown = invoke("show", room.slug)
    assert shown.code == 0 and "Not yet running" in shown.out


def test_broken_rooms_are_told_with_file_and_field(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    paper = room.folder / "paper.toml"
    text = paper.read_text(encoding="utf-8")
    for broken, words in (
        (text + "[[", "not valid TOML"),
        (text.replace('topics = ["learning theory"]', 'topics = ["magic"]'), "topics: unknown topic 'magic'"),
        (text.replace("authors_count", "author_count"), "authors_count: Field required"),
    ):
        paper.write_text(broken, encoding="utf-8")
        rooms_module._found.cache_clear()
        message = one_sentence(invoke("show", room.slug), 1)
        assert str(paper) in message and words in message
        listed = invoke("list")
        assert listed.code == 1 and message in listed.err
        assert "papers; " in listed.out, "the other rooms are listed all the same"
    paper.write_text(text, encoding="utf-8")
    reference = room.folder / "reference.json"
    reference.write_text('{"slug": 1}', encoding="utf-8")
    rooms_module._found.cache_clear()
    message = one_sentence(invoke("verdicts"), 1)
    assert str(reference) in message and f"working-papers run {room.slug} --reference" in message
    reference.unlink()
    study = room.folder / "study.py"
    study.write_text(study.read_text(encoding="utf-8").replace('method="new"', 'method="newer"'), encoding="utf-8")
    message = one_sentence(invoke("run", room.slug, "--scale", "smoke"), 1)
    assert "method: unknown arm 'newer'; the arms are new, old (study.py, line" in message


def test_an_entry_point_that_leads_nowhere_is_named(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "lost-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[working_papers.papers]\nlost = no.such.package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    rooms_module._found.cache_clear()
    listed = invoke("list")
    assert listed.code == 1 and "the room 'lost' of the package lost names no.such.package" in listed.err
    assert "papers; " in listed.out, "the other rooms are listed all the same"
    rooms_module._found.cache_clear()


def test_homes_and_databases_that_cannot_be_used_are_named(
    invoke: Invoke, write: Callable[..., Room], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = write()
    file = tmp_path / "a file"
    file.write_text("not a folder", encoding="utf-8")
    monkeypatch.delenv("WORKING_PAPERS_DATABASE", raising=False)  # this is about files
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(file / "home"))
    message = one_sentence(invoke("run", room.slug, "--scale", "smoke"), 1)
    assert str(file / "home") in message and "set WORKING_PAPERS_HOME to a folder you may write" in message

    home = tmp_path / "corrupt"
    home.mkdir()
    database = home / "working-papers.db"
    database.write_bytes(b"this is not a database" * 500)
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(home))
    message = one_sentence(invoke("run", room.slug, "--scale", "smoke"), 1)
    assert "working-papers.db" in message and "move working-papers.db away to start afresh" in message
    assert database.read_bytes() == b"this is not a database" * 500, "what cannot be read is left alone"

    monkeypatch.setenv("WORKING_PAPERS_DATABASE", "no address")
    assert "WORKING_PAPERS_DATABASE is not a database address" in one_sentence(invoke("run", room.slug), 1)
    monkeypatch.setenv("WORKING_PAPERS_DATABASE", "")
    monkeypatch.setenv("WORKING_PAPERS_PORT", "many")
    assert "WORKING_PAPERS_PORT" in one_sentence(invoke("run", room.slug), 1)


def test_a_cluster_that_does_not_answer_is_named(invoke: Invoke, write: Callable[..., Room]) -> None:
    pytest.importorskip("ray")
    message = one_sentence(invoke("run", write().slug, "--scale", "smoke", "--on", "ray://127.0.0.1:1"), 1)
    assert "no Ray cluster answers at 'ray://127.0.0.1:1'" in message


def test_a_reference_is_written_shown_and_goes_stale(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    said = invoke("run", room.slug, "--reference")
    assert said.code == 0 and f"written: {room.folder / 'reference.json'}" in said.out
    assert read_record(room.folder / "reference.json").answer == "holds"
    rooms_module._found.cache_clear()

    listed = invoke("verdicts", "--json").json()
    assert isinstance(listed, list)
    (mine,) = [row for row in listed if row["slug"] == room.slug]
    assert mine["answer"] == "holds" and mine["stale"] == "" and mine["sham"]["answer"] != "holds"
    assert mine["arms"]["new"]["measures"]["loss"] == pytest.approx([1.0] * 3, abs=0.01)
    text = invoke("verdicts").out
    assert re.search(rf"holds +{room.slug}$", text, flags=re.MULTILINE)
    table = invoke("verdicts", "--markdown").out
    assert re.search(rf"^\| `{room.slug}` \| .* \| \*\*holds\*\* \| New arm beats .* \|$", table, flags=re.MULTILINE)
    shown = invoke("show", room.slug, "--json").json()
    assert isinstance(shown, dict) and shown["reference"]["answer"] == "holds"
    assert "HOLDS" in invoke("show", room.slug).out

    method = room.folder / "method.py"
    method.write_text(method.read_text(encoding="utf-8") + "\nCHANGED = True\n", encoding="utf-8")
    assert f"{room.slug} (stale: the room's code has changed since)" in invoke("verdicts").out
    assert "Stale: the room's code has changed since." in invoke("show", room.slug).out


def test_a_study_that_holds_to_its_sham_gets_no_reference(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    study = room.folder / "study.py"
    text = study.read_text(encoding="utf-8")
    study.write_text(re.sub(r"        beats\(.*\n", "", text), encoding="utf-8")  # what is left holds to anything
    said = invoke("run", room.slug, "--reference")
    assert said.code == 1 and "the study says *holds* to a sham" in said.err and said.err.count("working-papers: ") == 1
    assert not (room.folder / "reference.json").exists()


def test_list_and_show_are_valid_json(invoke: Invoke, write: Callable[..., Room]) -> None:
    room = write()
    rows = invoke("list", "--json").json()
    assert isinstance(rows, list) and len(rows) >= 67
    (mine,) = [row for row in rows if row["slug"] == room.slug]
    assert mine == {
        "slug": room.slug,
        "title": room.paper.title,
        "arxiv": None,
        "topics": ["learning theory"],
        "runs": True,
        "verdict": None,
    }
    shown = invoke("show", room.slug, "--json").json()
    assert isinstance(shown, dict)
    assert shown["slug"] == room.slug and shown["paper"]["claims"][0]["id"] == "robust" and shown["reference"] is None
    text = invoke("list").out
    assert room.slug in text and re.search(r"67 papers; \d+ run", text)


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    """Listing rooms and showing verdicts is reading data."""
    program = """
import sys
from working_papers.cli import main
for arguments in (["--help"], ["list"], ["list", "--json"], ["verdicts"], ["show", "normuon"]):
    sys.argv = ["working-papers", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, arguments
    heavy = {"torch", "ray", "scipy", "matplotlib", "sklearn"} & set(sys.modules)
    assert not heavy, f"{arguments} imported {heavy}"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
