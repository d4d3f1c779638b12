"""A training step as one CUDA graph: the GPU replays its kernels, and Python starts none of them.

The networks are so small that a GPU computes a kernel sooner than Python launches the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before the recording, in which cuDNN chooses its algorithms


class Graph:
    """A function of tensors on a GPU, called as it is `WARM_UP` times, then recorded and replayed.

    A recording is of addresses: the inputs are copied to where the recorded ones lie, and must
    keep their shapes; what the function changes, such as weights, must stay where it is.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.calls = 0
        self.recording: torch.cuda.CUDAGraph | None = None

    def __call__(self, **inputs: Tensor) -> Tensor:
        """Compute the function; its output is this call's own."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._on_a_side_stream(**inputs)
        if self.recording is None:
            self.inputs = {name: x.clone() for name, x in inputs.items()}
            self.recording = torch.cuda.CUDAGraph()
            # Other threads may go on reading batches and writing files meanwhile.
            with torch.cuda.graph(self.recording, capture_error_mode="thread_local"):
                self.output = self.function(**self.inputs)
        for name, x in inputs.items():
            self.inputs[name].copy_(x)
        self.recording.replay()  # recording computed nothing
        return self.output.clone()

    def _on_a_side_stream(self, **inputs: Tensor) -> Tensor:
        """Compute as a recording will: CUDA records on no other than a side stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self.function(**inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return output
