"""Signals end a run when its step is saved, with the status that shells expect."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images

from serialization import checkpoint
from train import Config, train
from training import signals
from training.logger import Logger
from training.setup import Schedule
from training.signals import noted

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
SMALL = ["--data", "images", "--image_size", "16", "--features", "4", "--batch_size", "4",
         "--epochs", "100000", "--log_every", "1", "--device", "cpu"]  # fmt: skip


@contextlib.contextmanager
def running(*arguments, ready=20):
    """Start train.py, or a command before it, and wait until its log has some steps."""
    write_images(Path("images"), 40)
    process = subprocess.Popen(
        [*arguments, str(ROOT / "train.py"), *SMALL], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = Path("samples", "images", "log.jsonl")
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text().count("\n") > ready):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))],
)
def test_a_signal_saves_the_step_and_says_how_to_go_on(name):
    number = getattr(signal, name)
    with running(sys.executable) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    step = checkpoint.load("checkpoints/images/last.pth")["step"]
    last_line = said.splitlines()[-1]
    assert f"{name}: saved step {step:,}; go on with train.py --name images --resume" in last_line
    assert "Traceback" not in said
    log = [json.loads(line) for line in Path("samples/images/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(1, step + 1))
    again = train(Config(name="images", resume="last", steps=step + 3))
    assert checkpoint.load(again)["step"] == step + 3


def test_a_second_interrupt_does_not_wait_unless_it_is_the_first_delivered_twice():
    with pytest.raises(KeyboardInterrupt), noted() as came:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert came() == signal.SIGINT
        time.sleep(signals.APART)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_user_who_interrupts_waits_for_one_file_at_most(small):
    written, began, left = [], threading.Event(), threading.Event()

    def write(i):
        began.set()
        if left.wait(10):  # for which the interrupted run does not wait
            written.append(i)

    config = Config(**small, name="run")
    Path(config.sample_dir, "run").mkdir(parents=True)
    images = np.zeros((4, 16, 16, 3), np.uint8)
    with (
        pytest.raises(KeyboardInterrupt),
        Logger(config, Schedule(4, 5, 0, 10), images, (0, 1)) as logger,
    ):
        for i in range(5):
            logger._later(write, i)
        began.wait(600)
        raise KeyboardInterrupt
    left.set()
    logger.thread.shutdown()
    assert written == [0]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noted() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert came() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_another_thread_trains(small):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(Config(**small))))
    thread.start()
    thread.join()
    assert checkpoint.load(done[0])["step"] == 10
