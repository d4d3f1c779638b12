"""Devices, precision and the CUDA graph, as far as a machine without a GPU can show.

Where a GPU is faked, torch's lowest C call is replaced and never its Python wrapper, which holds
the argument checks.
"""

import warnings

import pytest
import torch

import utils
from training.acceleration import WARM_UP, Graph, cudnn_benchmark, half_precision, pick_precision
from training.distributed import backend_for
from utils import SettingsError, memory_format, pick_device, run_script, to_device, train_once

CPU = torch.device("cpu")


@pytest.fixture
def fake_gpu(monkeypatch):
    """Two CUDA GPUs on which nothing is computed; the indices that were made current."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    monkeypatch.setattr(utils, "train_once", lambda device: None)  # its kernels are the GPU's
    return current


def failing(monkeypatch, error):
    def train_once(device):
        raise error

    monkeypatch.setattr(utils, "train_once", train_once)


@pytest.mark.parametrize(
    ("name", "local_rank", "index"),
    [("auto", None, 0), ("cuda", None, 0), ("cuda:1", None, 1), ("auto", 1, 1), ("cuda", 1, 1)],
)
def test_a_cuda_device_has_its_index(fake_gpu, monkeypatch, name, local_rank, index):
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device(name) == torch.device("cuda", index) and fake_gpu == [index]


def test_two_ranks_on_one_gpu_are_refused(fake_gpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="--device cuda:0: under torchrun leave the number out"):
        pick_device("cuda:0")
    assert not fake_gpu


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with..."
PROBLEMS = [
    (torch.AcceleratorError(NO_KERNEL), "has no kernels for cuda:0"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "cuda:0 has no memory left"),
    (RuntimeError("CUDA-capable device(s) is/are busy or unavailable"), "exclusive mode"),
    (RuntimeError("CUDA error: unspecified launch failure. And more"), "unspecified launch"),
    (NotImplementedError("The operator 'aten::x' is not implemented"), "aten::x"),
]


@pytest.mark.parametrize(("error", "says"), PROBLEMS)
def test_a_gpu_that_cannot_train_is_left_by_auto_and_refused_by_name(
    fake_gpu, monkeypatch, capsys, error, says
):
    failing(monkeypatch, error)
    assert pick_device("auto") == CPU
    said = capsys.readouterr().err
    assert says in said and said.endswith(": using the CPU\n") and said.count("\n") == 1
    with pytest.raises(SettingsError, match="--device cuda: ") as refused:
        pick_device("cuda")
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_auto_without_a_gpu_says_why_where_there_may_be_one(monkeypatch, capsys):
    def too_old():
        warnings.warn(
            "The NVIDIA driver on your system is too old (found version 12080).", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert pick_device("auto") == CPU
    assert "Warning: the NVIDIA driver is too old" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(utils.shutil, "which", lambda name: None)
    assert pick_device("auto") == CPU and not capsys.readouterr().err
    monkeypatch.setattr(utils.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pick_device("auto") == CPU
    assert "CUDA_VISIBLE_DEVICES='' hides all GPUs" in capsys.readouterr().err
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(utils.shutil, "which", lambda name: None)
    assert pick_device("auto") == CPU
    assert "--device mps would use" in capsys.readouterr().out


def test_ranks_average_by_what_this_pytorch_has(monkeypatch, capsys):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert backend_for(torch.device("cuda", 0)) == "nccl" and backend_for(CPU) == "gloo"
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert backend_for(torch.device("cuda", 0)) == "gloo"
    assert "no NCCL" in capsys.readouterr().err
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "xccl")
    assert backend_for(torch.device("xpu")) == "xccl"
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: False)
    with pytest.raises(SettingsError, match="--device xpu"):
        backend_for(torch.device("xpu"))


def test_devices_that_are_not_here_are_refused():
    for name in ("toaster", "cuda:x", "mps" if not torch.backends.mps.is_available() else "xpu"):
        with pytest.raises(SettingsError, match=f"--device {name}"):
            pick_device(name)


def test_the_trial_trains_and_leaves_the_random_numbers():
    before = torch.get_rng_state()
    train_once(CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_only_cuda_copies_without_waiting_and_only_where_memory_can_be_pinned(monkeypatch, capsys):
    copies = []

    class Spied(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.pin_memory:
                raise RuntimeError("CUDA error: OS call failed\nand more")
            if function is torch.Tensor.to:
                copies.append((args[1].type, (kwargs or {}).get("non_blocking", False)))
                return args[0]
            return super().__torch_function__(function, types, args, kwargs or {})

    x = torch.zeros(2).as_subclass(Spied)
    utils.warn_once.cache_clear()
    for kind in ("cpu", "mps", "xpu", "cuda", "cuda"):
        to_device(x, torch.device(kind))
    assert copies == [(kind, False) for kind in ("cpu", "mps", "xpu", "cuda", "cuda")]
    assert capsys.readouterr().err.count("no pinned memory here (CUDA error: OS call failed)") == 1


def test_channels_last_is_for_cpu_and_cuda():
    formats = [memory_format(torch.device(kind)) for kind in ("cpu", "cuda", "mps", "xpu")]
    assert formats == [torch.channels_last] * 2 + [torch.contiguous_format] * 2


def test_out_of_memory_is_one_line(capsys):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand more")

    with pytest.raises(SystemExit) as stopped:
        run_script(main)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "--batch_size" in said and said.count("\n") == 1


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slower", "picked"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_auto_takes_the_faster_precision(monkeypatch, capsys, slower, picked):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def make_step(precision):
        size = 600 if precision == slower else 2
        x = torch.ones(size, size)
        return lambda: x @ x

    assert pick_precision("auto", CPU, make_step) == picked
    assert f"precision: {picked}, as bf16 is" in capsys.readouterr().out
    assert pick_precision("fp16", CPU, make_step) == "fp16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert pick_precision("auto", CPU, make_step) == "fp32"


def test_emulated_bf16_is_not_a_candidate_and_warned_of(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    cuda = torch.device("cuda", 0)
    assert half_precision(cuda) == "fp16" and half_precision(torch.device("mps")) is None
    assert pick_precision("bf16", cuda, None) == "bf16"
    assert "this GPU emulates it" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert half_precision(cuda) == "bf16"


def test_cudnn_benchmark_is_put_back():
    before = torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), cudnn_benchmark():
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark == before


# The CUDA graph -----------------------------------------------------------------------------------


class FakeStream:
    def wait_stream(self, other):
        pass


class FakeGraph:
    """A recording whose replay calls the function again."""

    fails, differs, replays, options = None, False, 0, None

    def replay(self):
        FakeGraph.replays += 1
        output = self.owner.function(**self.owner.inputs)
        self.owner.output.copy_(output + FakeGraph.differs)


@pytest.fixture
def graph(monkeypatch):
    """A `Graph` of a function that adds to a tensor in place, on a fake CUDA."""

    class Capture:
        def __init__(self, recording, **options):
            recording.owner, FakeGraph.options = made, options

        def __enter__(self):
            if FakeGraph.fails:
                raise FakeGraph.fails

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(FakeGraph, "fails", None)
    monkeypatch.setattr(FakeGraph, "differs", False)
    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    total = torch.zeros(())

    def add(x):
        total.add_(x.sum())
        return total.clone()

    made = Graph(add, lambda: [total])
    return made


def sums(graph, calls=8):
    return [graph(x=torch.full((2,), float(i))).item() for i in range(calls)]


EXPECTED = [0.0, 2.0, 6.0, 12.0, 20.0, 30.0, 42.0, 56.0]


def test_a_recorded_function_gives_what_the_plain_one_does(graph, capsys):
    assert sums(graph) == EXPECTED and not capsys.readouterr().err
    assert FakeGraph.replays == 8 - WARM_UP
    options = FakeGraph.options
    assert options["capture_error_mode"] == "thread_local" and options["stream"] is graph.stream


@pytest.mark.parametrize("problem", ["fails", "differs"])
def test_a_recording_that_fails_or_differs_is_left_with_one_warning(graph, capsys, problem):
    setattr(FakeGraph, problem, RuntimeError("capture failed\nmore") if problem == "fails" else 1)
    assert sums(graph) == EXPECTED
    said = capsys.readouterr().err
    assert said.count("no CUDA graph") == 1 and said.count("\n") == 1
    assert FakeGraph.replays == (0 if problem == "fails" else 1)


def test_out_of_memory_in_a_recording_is_not_swallowed(graph):
    FakeGraph.fails = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        sums(graph)
