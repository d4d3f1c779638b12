"""Each stress program finds its promise kept, in a form of some seconds."""

import importlib
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "stress"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="they kill, mount and bound as POSIX"),
]


@pytest.mark.parametrize(
    "words",
    [
        "kill --kills 2 --steps 100",
        "stop --times 1 --steps 60 --patience 30",
        "lost_rank --times 1 --steps 60",
        "damage --flips 50 --every 5",
        "full_disk --sizes 1.4",
        "not_finite --points 1",
        "cache_kill --kills 2",
        "odd_images",
        "archives --entries 300",
        "fuzz --cases 300",
    ],
    ids=lambda words: words.split()[0],
)
def test_a_promise_is_kept(words, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name, *flags = words.split()
    broken = importlib.import_module(name).main(flags)
    said = capfd.readouterr()
    assert broken == 0, said.out + said.err
    assert int(said.out.split(":")[1].split()[0].replace(",", "")) > 0  # it did do harm


def test_every_program_is_tried_here():
    programs = {path.stem for path in Path(__file__).with_name("stress").glob("*.py")}
    (tried,) = (
        mark.args[1] for mark in test_a_promise_is_kept.pytestmark if mark.name == "parametrize"
    )
    assert programs - {"harness", "mutations", "surroundings"} == {
        words.split()[0] for words in tried
    }
