"""Lanes: on a processor in turn; on a card first as it is, then recorded, then replayed (here on a card that is acted)."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from lib.lanes import Lanes

BATCHES = [torch.arange(4.0) + step for step in range(3)] + [torch.ones(2), torch.full((2,), 5.0), torch.ones(4)]


class Graph:
    """A recording: what is called while it is made is kept, and happens when it is replayed."""

    making = None

    def __init__(self):
        self.calls, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for call in self.calls:
            call()


class Work:
    """Adds up its batches, times a random number, in place, as a kernel would: later, while a recording is made."""

    def __init__(self, generator):
        self.total, self.drawn, self.eager, self.generator = torch.zeros(()), [], 0, generator

    def __call__(self, batch):
        def kernel():
            self.drawn.append(float(torch.rand((), generator=self.generator())))
            self.total += batch.sum() * self.drawn[-1]

        if Graph.making:
            Graph.making.calls.append(kernel)
        else:
            self.eager += 1
            kernel()


@pytest.fixture
def card(monkeypatch):
    """A card in the place of torch.cuda; says what has been recorded, and which stream waited for which."""
    said = SimpleNamespace(graphs=[], waits=[], current="main", generator=torch.Generator().manual_seed(3))

    class Stream:
        def __init__(self, device=None, name=None):
            self.name = name or f"lane {len(said.waits)}"
            said.waits.append((self.name, "made"))

        def wait_stream(self, other):
            said.waits.append((self.name, other.name))

    @contextmanager
    def stream(its):
        said.current = its.name
        yield
        said.current = "main"

    @contextmanager
    def graph(made, stream):
        said.graphs.append(made)
        Graph.making = made
        yield
        Graph.making = None

    main = Stream(name="main")
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(
        Stream=Stream, stream=stream, graph=graph, CUDAGraph=Graph, current_stream=lambda device: main,
        default_generators=[said.generator]))
    return said


def totals(device, generator, count=2):
    lanes, works = Lanes(torch.device(device, 0) if device == "cuda" else torch.device(device), count), []
    works = [Work(lambda: generator) for _ in range(count)]
    for batch in BATCHES:
        lanes.each("add", works, batch.clone())
    lanes.join()
    return works


@pytest.mark.parametrize("count", [1, 2, 3])
def test_replayed_work_is_what_it_is_as_it_is(card, count, monkeypatch):
    recorded = totals("cuda", card.generator, count)
    monkeypatch.setattr(torch, "default_generator", torch.Generator().manual_seed(3))
    plain = totals("cpu", torch.default_generator, count)
    assert [float(work.total) for work in recorded] == [float(work.total) for work in plain]
    assert all(work.drawn == plain[0].drawn for work in recorded + plain) and len(set(plain[0].drawn)) == len(BATCHES)


def test_the_first_batch_of_a_shape_is_not_recorded_and_each_other_is_replayed(card):
    works = totals("cuda", card.generator)
    assert [work.eager for work in works] == [2, 2]              # of four images, of two
    assert len(card.graphs) == 4                                 # two lanes, two shapes
    assert sorted(graph.replays for graph in card.graphs) == [1, 1, 3, 3]
    assert all(len(graph.calls) == 1 for graph in card.graphs)


def test_a_batch_is_not_overwritten_while_a_lane_reads_it(card):
    lanes = Lanes(torch.device("cuda", 0), 2)
    card.waits.clear()
    works = [Work(lambda: card.generator) for _ in range(2)]
    lanes.each("add", works, torch.ones(2))
    first, second = (stream.name for stream in lanes.streams)
    assert card.waits == [("main", first), ("main", second), (first, "main"), (second, "main")]


def test_works_of_other_names_have_recordings_of_their_own(card):
    lanes, add, other = Lanes(torch.device("cuda", 0), 1), Work(lambda: card.generator), Work(lambda: card.generator)
    for _ in range(3):
        lanes.each("add", [add], torch.ones(2))
        lanes.each("other", [other], torch.ones(2))
    assert (add.eager, other.eager, len(card.graphs)) == (1, 1, 2)
    assert len(add.drawn) == len(other.drawn) == 3


@pytest.mark.parametrize("cause", [torch.OutOfMemoryError("full"), ValueError("no")])
def test_a_recording_that_breaks_off_says_why(card, monkeypatch, cause):
    class Broken:
        def __init__(self, made, stream): pass

        def __enter__(self): pass

        def __exit__(self, *of):
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", Broken)
    lanes, calls = Lanes(torch.device("cuda", 0), 1), []

    def work(batch):
        calls.append(batch)
        if len(calls) > 1:
            raise cause

    lanes.each("work", [work], torch.ones(2))
    with pytest.raises(torch.OutOfMemoryError if isinstance(cause, torch.OutOfMemoryError) else RuntimeError,
                       match="full" if isinstance(cause, torch.OutOfMemoryError) else "previous error"):
        lanes.each("work", [work], torch.ones(2))
