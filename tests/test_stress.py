"""Each stress program keeps its promise in a form of a few seconds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "stress"))

import kill


def test_killed_runs_leave_whole_checkpoints_and_end_equal(capsys):
    assert kill.main(["--kills", "2", "--steps", "100"]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "kills: 2\n" in said and "unreadable: 0\n" in said and "not equal: 0\n" in said
