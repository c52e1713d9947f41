import numpy as np
import pytest
import torch

from litcam.datamodules.order import EvalSampler, Stretch, TrainSampler, remaining, shuffled
from litcam.datamodules.sources.dataset import Draw, ImageDataset


class Numbers(ImageDataset):
    """So many images without pixels, in chunks of ten if asked for."""

    def __init__(self, count: int, *, chunked: bool = False) -> None:
        self.keys = [str(number) for number in range(count)]
        self.labels = torch.zeros(count, dtype=torch.int64)
        if chunked:
            # as litcam convert deals them out: any image in any chunk
            self.chunks = np.random.default_rng(0).permutation(count) // 10

    def read(self, index):
        raise NotImplementedError

    place = read

    def storage_order(self):
        return np.arange(len(self)) if self.chunks is None else np.argsort(self.chunks)


def samplers(dataset, world, batch_size, *, epoch=0, stretches=(), seed=0):
    found = []
    for rank in range(world):
        sampler = TrainSampler(dataset, batch_size, num_replicas=world, rank=rank, seed=seed)
        sampler.set_epoch(epoch)
        sampler.stretches = list(stretches)
        found.append(sampler)
    return found


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("count", "world", "batch_size"), [(1003, 1, 16), (1003, 4, 8), (40, 3, 5)]
)
def test_an_epoch_shows_each_image_at_most_once(count, world, batch_size, chunked):
    shares = [list(s) for s in samplers(Numbers(count, chunked=chunked), world, batch_size)]
    taken = [draw.image for share in shares for draw in share]
    assert len({len(share) for share in shares}) == 1
    assert len(taken) == len(set(taken))
    assert 0 <= count - len(taken) < world * batch_size
    assert all(isinstance(draw, Draw) for draw in shares[0])


def test_order_and_draws_follow_from_seed_and_epoch():
    dataset = Numbers(100)

    def draws(**kwargs):
        return list(samplers(dataset, 1, 10, **kwargs)[0])

    assert draws() == draws()
    assert draws() != draws(epoch=1)
    assert draws() != draws(seed=1)
    # The transform of an image does not depend on who takes it.
    alone = {draw.image: draw.seed for draw in draws()}
    shared = [draw for sampler in samplers(dataset, 3, 10) for draw in sampler]
    assert all(alone[draw.image] == draw.seed for draw in shared)
    again = {draw.image: draw.seed for draw in draws(epoch=1)}
    assert len(set(alone.values()) | set(again.values())) == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_what_was_taken_is_not_taken_again_by_any_other_number(chunked):
    generator = np.random.default_rng(3)
    for _ in range(60):
        dataset = Numbers(int(generator.integers(30, 400)), chunked=chunked)
        stretches, taken = [], []
        while True:
            world, batch_size = (int(number) for number in generator.integers(1, 5, 2))
            now = samplers(dataset, world, batch_size, stretches=stretches)
            possible = len(now[0].indices()) // batch_size
            left = set(range(len(dataset))) - set(taken)
            assert set(now[0].taken().tolist()) == set(taken)
            assert possible == len(left) // (world * batch_size)
            if not possible or len(stretches) == 4:
                break
            num_batches = int(generator.integers(1, possible + 1))
            for sampler in now:
                taken += sampler.indices()[: num_batches * batch_size].tolist()
            stretches.append(Stretch(world, batch_size, num_batches))
        assert len(taken) == len(set(taken))


def test_the_same_number_goes_on_as_if_nothing_had_happened():
    dataset = Numbers(1003)
    for whole, rest in zip(
        samplers(dataset, 2, 16),
        samplers(dataset, 2, 16, stretches=[Stretch(2, 16, 5), Stretch(2, 16, 7)]),
        strict=True,
    ):
        assert whole.indices()[12 * 16 :].tolist() == rest.indices().tolist()


def test_chunks_are_shuffled_a_few_at_a_time():
    chunks = np.arange(4000) // 100
    order = shuffled(4000, chunks, np.random.SeedSequence(0))
    assert sorted(order.tolist()) == list(range(4000))
    spans = [set((chunks[order[start : start + 800]]).tolist()) for start in range(0, 4000, 800)]
    assert all(len(span) == 8 for span in spans)
    assert len(set(chunks[order[:64]].tolist())) >= 6
    assert order[:800].tolist() != sorted(order[:800].tolist())


def test_nothing_is_left_after_everything():
    order = np.arange(10)
    assert remaining(order, [Stretch(2, 5, 1)]).tolist() == []
    assert remaining(order, [Stretch(2, 2, 1)]).tolist() == [2, 3, 6, 7, 8, 9]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_takes_everything_once_as_it_is_stored(world, chunked):
    dataset = Numbers(100, chunked=chunked)
    shares = [list(EvalSampler(dataset, num_replicas=world, rank=r)) for r in range(world)]
    assert [i for share in shares for i in share] == dataset.storage_order().tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
