import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest

from litcam.datamodules.order import (
    Stretch,
    as_images,
    evaluated,
    part,
    remaining,
    seeds,
    taken,
    total,
)


class Stored(NamedTuple):
    """Images in files of ten, dealt out as `litcam convert` does: any image in any file."""

    images: np.ndarray
    starts: np.ndarray


def stored(count):
    of_file = np.random.default_rng(0).permutation(count) // 10
    images = np.argsort(of_file, kind="stable")
    num_files = int(of_file.max()) + 1
    return Stored(images, np.searchsorted(of_file[images], np.arange(num_files + 1)))


def shares(count, world, batch_size, *, chunked=False, stretches=(), seed=0, epoch=0):
    """What each process takes of what is left."""
    files = stored(count) if chunked else None
    rest = remaining(count, stretches)
    return [
        as_images(part(rest, rank, world, batch_size), count, files, seed=seed, epoch=epoch)
        for rank in range(world)
    ]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("count", "world", "batch_size"), [(1003, 1, 16), (1003, 4, 8), (40, 3, 5), (7, 2, 4)]
)
def test_an_epoch_shows_each_image_at_most_once(count, world, batch_size, chunked):
    found = shares(count, world, batch_size, chunked=chunked)
    images = np.concatenate(found)
    assert len({len(share) for share in found}) == 1
    assert len(found[0]) % batch_size == 0
    assert len(np.unique(images)) == len(images)
    assert 0 <= count - len(images) < world * batch_size


@pytest.mark.parametrize("chunked", [False, True])
def test_the_order_follows_from_seed_and_epoch(chunked):
    def order(**kwargs):
        return shares(100, 1, 10, chunked=chunked, **kwargs)[0].tolist()

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert sorted(order()) == list(range(100))


def test_seeds_follow_from_run_epoch_and_image_alone():
    images = np.random.default_rng(0).permutation(100_000)
    found = seeds(images, seed=3, epoch=1)
    assert found.dtype == np.uint64
    assert len(np.unique(found)) == len(images)
    assert seeds(images[70:80], seed=3, epoch=1).tolist() == found[70:80].tolist()
    for other in ({"seed": 3, "epoch": 2}, {"seed": 4, "epoch": 1}):
        assert not np.isin(found, seeds(images, **other)).any()
    # Neighbours and neighbouring epochs share no bits beyond chance.
    bits = np.unpackbits((found[1:] ^ found[:-1]).view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.002


@pytest.mark.parametrize("chunked", [False, True])
def test_what_was_taken_is_not_taken_again_by_any_other_number(chunked):
    generator = np.random.default_rng(3)
    for _ in range(60):
        count = int(generator.integers(30, 400))
        stretches, gone = [], []
        while True:
            world, batch_size = (int(number) for number in generator.integers(1, 5, 2))
            now = shares(count, world, batch_size, chunked=chunked, stretches=stretches)
            possible = len(now[0]) // batch_size
            assert possible == (count - len(gone)) // (world * batch_size)
            files = stored(count) if chunked else None
            before = as_images(taken(count, stretches), count, files, seed=0, epoch=0)
            assert sorted(before.tolist()) == sorted(gone)
            if not possible or len(stretches) == 4:
                break
            num_batches = int(generator.integers(1, possible + 1))
            for share in now:
                gone += share[: num_batches * batch_size].tolist()
            stretches.append(Stretch(world, batch_size, num_batches))
        assert len(gone) == len(set(gone))


@pytest.mark.parametrize("chunked", [False, True])
def test_the_same_number_goes_on_as_if_nothing_had_happened(chunked):
    whole = shares(1003, 2, 16, chunked=chunked)
    parts = [Stretch(2, 16, 5), Stretch(2, 16, 7)]
    together = [Stretch(2, 16, 12)]
    for stretches in (parts, together):
        rest = shares(1003, 2, 16, chunked=chunked, stretches=stretches)
        for one, other in zip(whole, rest, strict=True):
            assert one[12 * 16 :].tolist() == other.tolist()


def test_files_are_shuffled_a_few_at_a_time():
    files = Stored(np.arange(4000), np.arange(0, 4001, 100))
    order = as_images([range(4000)], 4000, files, seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(4000))
    of_file = order // 100
    spans = [set(of_file[start : start + 400].tolist()) for start in range(0, 4000, 400)]
    assert all(len(span) == 4 for span in spans)
    assert set(of_file[:64].tolist()) == spans[0]
    assert order[:400].tolist() != sorted(order[:400].tolist())


def test_a_part_of_an_order_is_that_part_and_costs_as_much():
    count = 200_000
    files = Stored(np.arange(count, dtype=np.int32), np.arange(0, count + 1, 100))
    whole = as_images([range(count)], count, files, seed=1, epoch=2)
    spans = [range(950, 1050), range(4321, 99_999)]
    pieces = as_images(spans, count, files, seed=1, epoch=2)
    assert pieces.tolist() == [*whole[950:1050].tolist(), *whole[4321:99_999].tolist()]
    tracemalloc.start()
    as_images([range(100_000, 101_000)], count, files, seed=1, epoch=2)
    assert tracemalloc.get_traced_memory()[1] < 200_000  # the whole order would be 1.6 MB
    tracemalloc.stop()


def test_nothing_is_left_after_everything():
    assert remaining(10, [Stretch(2, 5, 1)]) == []
    assert remaining(10, [Stretch(2, 2, 1)]) == [range(2, 4), range(6, 8), range(8, 10)]
    assert taken(10, [Stretch(2, 2, 1)]) == [range(2), range(4, 6)]
    assert total(taken(10, [Stretch(2, 5, 1)])) == 10
    assert len(as_images([], 10, None, seed=0, epoch=0)) == 0


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_takes_everything_once_as_it_is_stored(world, chunked):
    files = stored(100) if chunked else None
    found = [evaluated(100, files, rank=rank, num_replicas=world) for rank in range(world)]
    expected = files.images if chunked else np.arange(100)
    assert np.concatenate(found).tolist() == expected.tolist()
    assert max(map(len, found)) - min(map(len, found)) <= 1
