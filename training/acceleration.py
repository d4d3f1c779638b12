"""What makes a step fast: the faster precision, cuDNN's choice of algorithms, the CUDA graph."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from utils import warn

WARM_UP = 3  # plain calls before the recording, in which cuDNN chooses its algorithms
WORTH = 1.1  # times as fast as fp32 that another precision must be


def pick_precision(
    name: str, device: torch.device, make_step: Callable[[str], Callable[[], Tensor]]
) -> str:
    """Return the precision `name`; for "auto" time real steps in each and return the fastest.

    Args:
        make_step: of a precision, the function that plays a step in it.
    """
    half = half_precision(device)
    if name == "bf16" and half == "fp16":
        warn("--precision bf16: this GPU emulates it; fp16 or fp32 is faster")
    if name != "auto" or half is None:
        return "fp32" if name == "auto" else name
    gain = seconds_per_step(make_step("fp32"), device) / seconds_per_step(make_step(half), device)
    picked = half if gain > WORTH else "fp32"
    print(f"precision: {picked}, as {half} is {gain:.1f} times as fast as fp32 here")
    return picked


def half_precision(device: torch.device) -> str | None:
    """Return the 16-bit precision that `device` computes in without emulation, if any.

    MPS and XPU compute in fp32 unless asked otherwise.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else None


def seconds_per_step(step: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds that one call of `step` takes."""
    warm_up, calls = (WARM_UP + 2, 20) if device.type == "cuda" else (1, 2)
    for _ in range(warm_up):  # memory, algorithms and the graph
        step().tolist()
    start = time.perf_counter()
    for _ in range(calls):
        output = step()
    output.tolist()  # which waits for the device
    return (time.perf_counter() - start) / calls


@contextlib.contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN try its algorithms, as shapes never change; a notebook has its setting back."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Graph:
    """A function of CUDA tensors that is recorded as a CUDA graph, and then replayed.

    The networks are so small that a GPU computes a kernel sooner than Python launches the next. The
    first `WARM_UP` calls are plain. A recording is of addresses: inputs are copied to where the
    recorded ones lie, and must keep their shapes; what the function changes must stay in its place.
    The first replay is compared with a plain call; if it fails or differs, all calls are plain.

    Args:
        function: takes tensors by name, and returns one.
        changed: returns the tensors that it changes in place.
    """

    def __init__(
        self, function: Callable[..., Tensor], changed: Callable[[], Sequence[Tensor]]
    ) -> None:
        self.function, self.changed = function, changed
        self.calls = 0
        self.recording: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, **inputs: Tensor) -> Tensor:
        """Compute the function; the output is this call's own."""
        self.calls += 1
        if self.calls == WARM_UP + 1:
            return self._record(inputs)
        return self._plain(inputs) if self.recording is None else self._replay(inputs)

    def _plain(self, inputs: dict[str, Tensor]) -> Tensor:
        """Compute on the stream of the recording: libraries make a handle for each."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            output = self.function(**inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return output

    def _replay(self, inputs: dict[str, Tensor]) -> Tensor:
        for name, x in inputs.items():
            self.inputs[name].copy_(x)
        self.recording.replay()
        return self.output.clone()

    def _record(self, inputs: dict[str, Tensor]) -> Tensor:
        """Record, compare the first replay with a plain call, and return what that returns."""
        changed = self.changed()
        before = [x.clone() for x in changed]

        def restore() -> None:
            with torch.no_grad():
                for x, old in zip(changed, before, strict=True):
                    x.copy_(old)

        problem = None
        try:
            self.inputs = {name: x.clone() for name, x in inputs.items()}
            recording = torch.cuda.CUDAGraph()
            # Other threads may go on reading batches and writing files meanwhile.
            with torch.cuda.graph(recording, stream=self.stream, capture_error_mode="thread_local"):
                self.output = self.function(**self.inputs)
            self.recording = recording
            restore()
            replayed = self._replay(inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            problem = str(error).strip().partition("\n")[0]
        restore()
        output = self._plain(inputs)
        if problem is None and not torch.allclose(replayed, output, rtol=0.05, atol=0.05):
            problem = "its first replay gave other numbers"
        if problem is not None:
            self.recording = None
            warn(f"no CUDA graph ({problem}): training goes on without, slower")
        return output
