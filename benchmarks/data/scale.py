"""ImageNet's size, and ten times that, without its pictures.

    python benchmarks/data/scale.py tables      # memory, an epoch's start, a checkpoint's state
    python benchmarks/data/scale.py cache       # 8 nodes x 8 GPUs x 12 workers on 24,000 chunks

``tables`` makes up names, labels and places of 1.28 M and 14.2 M images (ImageNet and ImageNet-21k)
in folders and in shards, and takes them through what a rank and a worker do with them but for the
decoding: the private memory of a worker is what it has written to itself after a pass over *all*
images, more than it would see in many epochs.

``cache`` runs one node's eight processes through a cold epoch in simulated time with the policy of
the cache server itself (`litcam.datamodules.remote.policy`), litcam's order of an epoch and the
plans that shards make of it. A batch is read by one of twelve workers, which waits for the chunks
of its images; the GPUs take 3,000 images a second each; the store gives 32 chunks at once to a
node, 0.15 s until the first byte and 0.35 GB/s for each. Downloads are counted over the number of
different chunks the node needs, waits over the chunks of all processes: those whose reader found
them absent.
"""

import argparse
import heapq
import itertools
import os
import pickle
import resource
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from litcam.datamodules.order import Stored, as_images, part, remaining, seeds
from litcam.datamodules.remote.policy import Policy
from litcam.datamodules.sources.follow import uses_of_chunks
from litcam.datamodules.sources.table import ImageTable, build_table

SIZES = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122}
IMAGES_A_CHUNK = 580  # 64 MB of ImageNet's photos


def memory(kind: str, process: int | str = "self") -> float:
    """Megabytes of a kind of memory of a process, as Linux accounts for it."""
    with open(f"/proc/{process}/smaps_rollup") as file:  # noqa: PTH123
        found = [line.split() for line in file if line.startswith(f"{kind}:")]
    return int(found[0][1]) / 1024


def names(count: int) -> Iterator[tuple[str, int]]:
    """Names and classes such as ImageNet's."""
    for index in range(count):
        label = index * 1000 // count
        yield f"n{label + 1440764:08}/n{label + 1440764:08}_{index}.JPEG", label


def make_table(count: int, *, shards: bool) -> ImageTable:
    """A table of made-up images."""
    if not shards:
        return build_table(names(count))
    generator = np.random.default_rng(0)
    chunk = (generator.permutation(count) // IMAGES_A_CHUNK).astype(np.int32)
    images = np.argsort(chunk, kind="stable")
    starts = np.searchsorted(chunk[images], np.arange(int(chunk.max()) + 2))
    length = np.full(count, 110_000)
    offset = np.empty(count, np.int64)
    offset[images] = (np.arange(count) - starts[chunk[images]]) * 110_000
    columns = {"chunk": chunk, "offset": offset, "length": length, "images": images}
    return build_table(names(count), starts=starts, **columns)


def read_all(table: ImageTable, answer: Any) -> None:
    """What a worker does for each image but for opening it; what it has written to itself."""
    before = memory("Private_Dirty")
    columns = [table.columns[name] for name in ("chunk", "offset", "length") if name in table.files]
    for index in range(len(table)):
        int(table.labels[index])
        for column in columns:
            int(column[index])
        if index % 1000 == 0:
            _ = table.keys[index]
    answer.put(memory("Private_Dirty") - before)


def measure_tables() -> None:
    """Prints a row for each size and source."""
    print(
        "| images | from | built, s | a rank, MB | a worker after a pass, MB "
        "| epoch's start, s | bytes of state |"
    )
    print("|---|---|---|---|---|---|---|")
    for title, count in SIZES.items():
        for shards in (False, True):
            before, began = memory("Pss"), time.perf_counter()
            table = make_table(count, shards=shards)
            built = time.perf_counter() - began
            os.sync()  # else what the cache of the disk has yet to write counts as a worker's own
            table.labels[::1024].sum()
            rank = memory("Pss") - before
            began = time.perf_counter()
            of_epoch = start_epoch(table, count)
            started = time.perf_counter() - began
            del of_epoch
            context = get_context("fork")
            answer = context.Queue()
            worker = context.Process(target=read_all, args=(table, answer))
            worker.start()
            grown = answer.get()
            worker.join()
            state = len(pickle.dumps({"epoch": 3, "seed": 0, "stretches": [[64, 256, 9]]}))
            kind = "shards" if shards else "folders"
            print(
                f"| {title}, {count:,} | {kind} | {built:.1f} | {rank:.0f} | {grown:.1f} | "
                f"{started:.2f} | {state} |",
                flush=True,
            )
            del table
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak of the whole program: {peak:.0f} MB, with the making up of the tables.")


def start_epoch(table: ImageTable, count: int) -> Any:
    """What one process alone does before its first image of an epoch."""
    images = as_images(part(remaining(count, []), 0, 1, 256), count, table.chunks, seed=0, epoch=1)
    first = seeds(images[:4096], seed=0, epoch=1)
    if table.chunks is None:
        return images, first
    return images, first, uses_of_chunks(images, table.columns["chunk"], len(table.chunks[1]) - 1)


class Node(NamedTuple):
    """What is simulated."""

    nodes: int = 8
    gpus: int = 8
    workers: int = 12
    prefetch: int = 2
    batch: int = 256
    chunks: int = 24_000
    rate: float = 3000.0  # images/s of a GPU
    headroom: float = 1.3  # how much faster than their GPU the workers of a process are
    connections: int = 32
    latency: float = 0.15
    bandwidth: float = 0.35e9  # bytes/s of a connection
    chunk_bytes: int = 64_000_000


class Rank:
    """One process: its order of chunks, and its batches as the chunks that each needs."""

    def __init__(self, name: int, images: NDArray[np.int64], chunk: Any, node: Node) -> None:
        numbers, first, last = uses_of_chunks(images, chunk, node.chunks)
        self.name, self.numbers, self.first = name, numbers.tolist(), first
        self.last = np.maximum.accumulate(last)
        self.batches = [
            np.unique(chunk[images[at : at + node.batch]]).tolist()
            for at in range(0, len(images), node.batch)
        ]
        self.next = self.taken = 0
        self.done: set[int] = set()
        self.waited: set[int] = set()
        self.free_at = 0.0  # when its GPU takes the next batch


class Simulation:
    """One node's epoch, in the order of events."""

    def __init__(self, node: Node, budget: float | None, seed: int = 0) -> None:
        self.node = node
        count, world = node.chunks * IMAGES_A_CHUNK, node.nodes * node.gpus
        chunk = np.repeat(np.arange(node.chunks, dtype=np.int32), IMAGES_A_CHUNK)

        class Files(NamedTuple):
            images: Any
            starts: Any

        files: Stored = Files(np.arange(count), np.arange(node.chunks + 1) * IMAGES_A_CHUNK)
        self.ranks = []
        for rank in range(node.gpus):
            spans = part(remaining(count, []), rank, world, node.batch)
            images = as_images(spans, count, files, seed=seed, epoch=0)
            self.ranks.append(Rank(rank, images, chunk, node))
        self.policy = Policy(None if budget is None else int(budget))
        self.events: list[tuple[float, int, Any]] = []
        self.count = 0
        self.connections = node.connections
        self.downloads: Counter[int] = Counter()
        self.blocked: dict[int, list[tuple[Rank, int, set[int]]]] = {}

    def at(self, when: float, action: Any) -> None:
        """Puts an event into the queue."""
        self.count += 1
        heapq.heappush(self.events, (when, self.count, action))

    def run(self) -> tuple[float, float, float]:
        """Downloads over ideal, share of chunks waited for, and time over that of the GPUs."""
        node, now = self.node, 0.0
        for rank in self.ranks:
            files = [(number, node.chunk_bytes) for number in rank.numbers]
            self.policy.follow(rank.name, files)
        for rank in self.ranks:
            self.tell(rank)
            for _ in range(node.workers):
                self.start_batch(rank, now)
        self.fetch(now)
        while self.events:
            now, _, action = heapq.heappop(self.events)
            action(now)
            self.fetch(now)
        chunks = sum(len(rank.numbers) for rank in self.ranks)
        waited = sum(len(rank.waited) for rank in self.ranks)
        needed = len({number for rank in self.ranks for number in rank.numbers})
        ideal = len(self.ranks[0].batches) * node.batch / node.rate
        return sum(self.downloads.values()) / needed, waited / chunks, now / ideal

    def tell(self, rank: Rank) -> None:
        """Tells the policy how far a process is, as its loader does."""
        asked = (rank.taken + self.node.workers * self.node.prefetch) * self.node.batch
        read = next(batch for batch in itertools.count(rank.taken) if batch not in rank.done)
        wanted = int(np.searchsorted(rank.first, asked))
        finished = int(np.searchsorted(rank.last, read * self.node.batch))
        self.policy.at(rank.name, wanted, finished)

    def start_batch(self, rank: Rank, now: float) -> None:
        """A worker takes the next batch of those that were asked for."""
        ahead = self.node.workers * self.node.prefetch
        if rank.next >= min(len(rank.batches), rank.taken + ahead):
            return
        batch, rank.next = rank.next, rank.next + 1
        missing = {number for number in rank.batches[batch] if number not in self.policy}
        rank.waited |= missing
        if missing:
            for number in missing:
                self.policy.request(number, self.node.chunk_bytes)
                self.blocked.setdefault(number, []).append((rank, batch, missing))
        else:
            self.read(rank, batch, now)

    def read(self, rank: Rank, batch: int, now: float) -> None:
        """All it needs is there: the worker reads it."""
        node = self.node
        seconds = node.batch * node.workers / (node.rate * node.headroom)
        self.at(now + seconds, lambda then: self.finish(rank, batch, then))

    def finish(self, rank: Rank, batch: int, now: float) -> None:
        """A batch is read; the GPU takes batches in order, and the worker goes on."""
        rank.done.add(batch)
        self.tell(rank)
        while rank.taken in rank.done and rank.free_at <= now:
            self.take(rank, now)
        if rank.taken in rank.done:
            self.at(rank.free_at, lambda then: self.wake(rank, then))
        self.start_batch(rank, now)

    def wake(self, rank: Rank, now: float) -> None:
        """The GPU is free again."""
        if rank.taken in rank.done and rank.free_at <= now:
            self.take(rank, now)
            if rank.taken in rank.done:
                self.at(rank.free_at, lambda then: self.wake(rank, then))

    def take(self, rank: Rank, now: float) -> None:
        """The GPU takes a batch; a worker that had nothing to do may go on."""
        rank.done.discard(rank.taken)
        rank.taken += 1
        rank.free_at = max(rank.free_at, now) + self.node.batch / self.node.rate
        self.tell(rank)
        if rank.next - rank.taken == self.node.workers * self.node.prefetch - 1:
            self.start_batch(rank, now)

    def fetch(self, now: float) -> None:
        """Starts what the policy has to fetch, as far as there are connections."""
        while self.connections and (step := self.policy.next()) is not None:
            if step.file is None:
                return
            self.connections -= 1
            self.downloads[step.file] += 1  # type: ignore[index]
            seconds = self.node.latency + step.num_bytes / self.node.bandwidth
            self.at(now + seconds, lambda then, file=step.file: self.arrive(file, then))

    def arrive(self, number: Any, now: float) -> None:
        """A chunk is there: whoever waited for it goes on."""
        self.connections += 1
        self.policy.fetched(number, self.node.chunk_bytes)
        for rank, batch, missing in self.blocked.pop(number, []):
            missing.discard(number)
            if not missing:
                self.read(rank, batch, now)


def measure_cache(budgets: list[float | None]) -> None:
    """Prints a row for each size of cache."""
    node = Node()
    print(
        f"{node.nodes} nodes x {node.gpus} GPUs x {node.workers} workers, batches of {node.batch}, "
        f"{node.chunks:,} chunks of {node.chunk_bytes / 1e6:.0f} MB; one node, one cold epoch.\n"
    )
    print("| cache of the node, GB | downloads / ideal | chunks waited for | time / the GPUs' |")
    print("|---|---|---|---|")
    for budget in budgets:
        simulation = Simulation(node, None if budget is None else budget * 1e9)
        downloads, waited, seconds = simulation.run()
        title = "all" if budget is None else f"{budget:g}"
        print(f"| {title} | {downloads:.3f} | {waited:.1%} | {seconds:.2f} |", flush=True)


def main() -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("tables", "cache"))
    parser.add_argument("--gb", type=float, nargs="*", default=[4, 8, 12, 16, 32, 64])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.what == "tables":
        measure_tables()
    else:
        measure_cache([*options.gb, None])


if __name__ == "__main__":
    main()
