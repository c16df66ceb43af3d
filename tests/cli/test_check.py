"""`shardfs check`: what it prints and returns, and that no other command pays for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shardfs.checking.canaries import catalog
from shardfs.cli import main
from tests.cli.commands import output_of, refused, run


def test_a_campaign() -> None:
    text = output_of("check", "--sequences", "20", "--seed", "1", "--jobs", "2")
    assert text.startswith("seed 1, 2 processes\n")
    assert "20 in " in text and "go on with" not in text
    assert text.endswith("no finding\n")


def test_a_campaign_as_json() -> None:
    text = output_of("check", "--seconds", "1", "--world", "store", "--jobs", "1", "--json")
    totals = json.loads(text)
    assert totals["failure"] is None and totals["jobs"] == 1
    assert list(totals["worlds"]) == ["store"]
    assert totals["worlds"]["store"]["sequences"] == totals["sequences"] == totals["first_undone"]
    assert totals["crashes"] == sum(
        count
        for word, count in totals["worlds"]["store"]["counts"].items()
        if word.startswith("crash ")
    )


def test_replay_of_what_is_no_finding() -> None:
    text = output_of("check", "replay", "1:store:5:", "--story")
    assert "world store" in text and "no finding" in text
    assert "no digest" in text


def test_replay_of_another_run() -> None:
    text = output_of("check", "replay", "1:store:5:0123456789abcdef")
    assert "no finding" in text and "changed since" in text


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("replay", "nonsense"), "'nonsense'"),
        (("replay", "1:nowhere:5:"), "nowhere"),
        (("replay", "1:store:5:", "--canary", "nobody"), "nobody"),
        (("replay",), "LINE"),
        (("crashes", "/nowhere"), "/nowhere"),
        (("--world", "nowhere"), "nowhere"),
        (("--jobs", "0"), "--jobs"),
        (("--sequences", "5", "--first", "999999999"), "another seed"),
        (("--only", "something"), "--canaries"),
        (("--canaries", "--only", "nobody"), "nobody"),
        (("--canary", "nobody"), "nobody"),
        (("--seconds", "5", "replay", "1:store:5:"), "--seconds"),
        (("sideways",), "sideways"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(arguments: tuple[str, ...], saying: str) -> None:
    refused("check", *arguments, saying=saying)


def test_a_planted_mistake_is_found_and_repeats() -> None:
    name = catalog()[0].name
    done = run("check", "--canaries", "--only", name, "--seconds", "100", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    (report,) = json.loads(done.stdout)
    assert report["canary"] == name and report["caught"] and report["sequences"] > 0
    again = run("check", "replay", report["line"], "--canary", name)
    assert (again.returncode, again.stderr) == (1, b"")
    assert b"digest included" in again.stdout
    without = run("check", "replay", report["line"])
    assert (without.returncode, without.stderr) == (0, b"")


def test_other_commands_do_not_pay_for_it() -> None:
    program = (
        "import sys\n"
        "from shardfs.cli.main import run\n"
        "status = run(sys.argv[1:])\n"
        "loaded = [each for each in sys.modules if each.startswith(('shardfs.checking', 'rich'))]\n"
        "sys.exit(status or ' '.join(loaded) or None)\n"
    )
    for arguments in (["--help"], ["check", "--help"], ["info", "--help"]):
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=60)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["check", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--sequences" in text and "replay" in text and "crashes" in text
