"""Each benchmark runs in a tiny form and prints its table."""

import importlib

import pytest
from conftest import write_images

from benchmarks import gpu

TINY = {
    "throughput": "--images 8 --batch_size 4 --features 2 --steps 1 --repeats 1 --device cpu "
    "--expert",
    "input_pipeline": "--images 8 --batch_size 4 --repeats 1 --device cpu",
    "generation": "--images 20 --repeats 1 --image_size 8",
    "scaling": "--counts 130 300 --ranks 1 --features 2 --steps 2 --repeats 1 --device cpu",
}


@pytest.mark.parametrize(
    "name",
    ["throughput", *(pytest.param(name, marks=pytest.mark.slow) for name in list(TINY)[1:])],
)
def test_a_benchmark_prints_its_table(name, capsys):
    importlib.import_module(f"benchmarks.{name}").main(TINY[name].split())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 and all("nan" not in row for row in rows)


@pytest.mark.slow
def test_quality_is_measured_and_not_trained_twice(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    data = write_images(tmp_path / "cats", 128)
    words = ["--data", str(data), "--images", "256", "--features", "2", "--rows", "0", "4"]
    words += ["--folder", str(tmp_path / "runs"), "--device", "cpu"]
    tables = []
    for _ in range(2):
        importlib.import_module("benchmarks.quality").main(words)
        said = capsys.readouterr().out
        tables.append([line for line in said.splitlines() if line.startswith("| ")])
    assert len(tables[0]) == 3 and tables[0] == tables[1]
    assert "epoch" not in said  # nothing was trained the second time


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path, monkeypatch, capfd):
    data = write_images(tmp_path / "faces", 130, size=(64, 64))
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.LIMITS, 300))
    failed = gpu.main(["--data", str(data), "--device", "cpu", "--steps", "1", "--features", "4"])
    said = capfd.readouterr().out
    assert failed == 0 and "8 of 8 parts passed" in said, said
    assert "at most 0 levels apart" in said and "expert's step" in said
