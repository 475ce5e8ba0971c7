"""The same small computation again and again, for one network or for several that take the same batches.

A training step of ResNet-56 is some seven hundred small kernels. Launched one by one from Python they leave a card idle most
of the time. So each network has a lane: a stream of its own, in which its step is recorded once, as a CUDA graph, and
replayed with a single launch; the steps of several networks share the card. On a processor they take turns.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Lanes:
    """`count` lanes on a device. What a lane computes does not depend on how many there are, or on the others."""

    def __init__(self, device: torch.device, count: int):
        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(count)] if device.type == "cuda" else []
        self._held: dict[tuple, tuple[Tensor, ...]] = {}            # name and shape -> what the graphs read
        self._graphs: dict[tuple, torch.cuda.CUDAGraph | None] = {}  # lane, name and shape -> its recording, once made

    def each(self, name: str, works: list[Callable], *tensors: Tensor) -> None:
        """Calls works[i](*tensors) in lane i. All draw the same random numbers, as each would if it were alone.

        name: what the works do, the same works each time; they may read and change only what stays where it is, such as
        weights and sums. Their results are there after `join`.
        """
        rng = torch.cuda.default_generators[self.device.index] if self.streams else torch.default_generator
        state = rng.get_state() if len(works) > 1 else None
        key = (name, *tensors[0].shape)
        if self.streams:
            tensors = self._hold(key, tensors)
        for lane, work in enumerate(works):
            if lane:
                rng.set_state(state)
            if self.streams:
                self._launch(lane, key, work, tensors)
            else:
                work(*tensors)

    def join(self) -> None:
        """Whatever comes next waits for all lanes."""
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)

    def _hold(self, key: tuple, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors, copied to where the graphs of this key read them."""
        if key not in self._held:
            self._held[key] = tuple(torch.empty_like(tensor) for tensor in tensors)
        self.join()   # they may still be reading the batch before
        for place, tensor in zip(self._held[key], tensors):
            place.copy_(tensor)
        return self._held[key]

    def _launch(self, lane: int, key: tuple, work: Callable, tensors: tuple[Tensor, ...]) -> None:
        """The first time as it is, which sets up what a recording must find ready; from the second time on recorded."""
        stream, its = self.streams[lane], (lane, *key)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            if its not in self._graphs:
                work(*tensors)
                self._graphs[its] = None
                return
            if self._graphs[its] is None:
                self._graphs[its] = _recorded(stream, work, tensors)
            self._graphs[its].replay()


def _recorded(stream: torch.cuda.Stream, work: Callable, tensors: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            work(*tensors)
    except RuntimeError as error:   # a recording that breaks off hides why
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from None
        raise
    return graph
