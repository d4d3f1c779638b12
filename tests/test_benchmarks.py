"""Each benchmark runs in a tiny form and prints its table."""

import importlib

import pytest

TINY = {
    "throughput": "--pictures 8 --batch_size 4 --features 2 --steps 1 --repeats 1 --device cpu",
    "input_pipeline": "--pictures 8 --batch_size 4 --repeats 1 --device cpu",
    "generation": "--pictures 20 --repeats 1 --image_size 8",
    "scaling": "--counts 130 300 --ranks 1 --features 2 --steps 2 --repeats 1 --device cpu",
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_table(name, capsys):
    importlib.import_module(f"benchmarks.{name}").main(TINY[name].split())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 and all("nan" not in row for row in rows)
