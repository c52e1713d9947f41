"""Which file of a cache to fetch next and which to evict. Decides only: no files, no clock."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

File = Hashable


class Step(NamedTuple):
    """What to remove, and then the file to fetch (None: what is under way must end first)."""

    evict: list[File]
    file: File | None
    num_bytes: int


class Need:
    """The order in which one process first needs files, and how far it is."""

    def __init__(self, files: Sequence[tuple[File, int]]) -> None:
        self.files = files
        self.wanted = self.finished = 0
        self.cursor = 0  # all before it are here, on their way or refused
        self.present: list[int] = []  # heap of negated places of files that are here


class Policy:
    """Decides for the cache of a node, which several processes use at once.

    Tell it what happens (``found``, ``fetched``, ``failed``, ``lost``) and what is needed
    (``follow``, ``at``, ``close``, ``request``, ``hold``), then ask ``next`` until it has nothing
    more. A file that is requested is fetched whatever it costs; others ahead of their need, the
    nearest need of any plan first. Room is made of files that no plan still needs, then of those
    needed farthest in the future. Amortised O(log files + plans) for each call.

    Args:
        budget: Bytes that may lie in the cache, those on their way included; None for no bound.
        ahead: How many files beyond those that were asked for a plan may be fetched early.
        near: How many of them may push out files that are needed later than they are.

    Attributes:
        used: Bytes in the cache and on their way to it.
    """

    def __init__(self, budget: int | None = None, *, ahead: int = 64, near: int = 8) -> None:
        self.budget, self.ahead, self.near = budget, ahead, near
        self.used = 0
        self._sizes: dict[File, int] = {}
        self._fetching: dict[File, int] = {}
        self._waiting: OrderedDict[File, int] = OrderedDict()
        self._held: Counter[File] = Counter()
        self._kept: set[File] = set()
        self._refused: set[File] = set()
        self._plans: dict[Hashable, Need] = {}
        self._places: dict[File, dict[Hashable, int]] = {}  # of files that plans still need
        self._spent: OrderedDict[File, None] = OrderedDict()  # read to the end by an open plan
        self._idle: OrderedDict[File, None] = OrderedDict()  # the rest that no plan needs

    def __contains__(self, file: File) -> bool:
        return file in self._sizes

    # What happened

    def found(self, file: File, num_bytes: int) -> None:
        """A file lies in the cache, least recently used first if several are told."""
        self.lost(file)
        self._sizes[file] = num_bytes
        self.used += num_bytes
        self._waiting.pop(file, None)
        self._shelve(file)

    def fetched(self, file: File, num_bytes: int) -> None:
        """A fetch ended well."""
        self.used -= self._fetching.pop(file, 0)
        self.found(file, num_bytes)

    def failed(self, file: File, *, again: bool) -> None:
        """A fetch did not end well; ``again`` if it may be tried ahead of its need once more."""
        self.used -= self._fetching.pop(file, 0)
        if again:
            self._turn_back(file)
        else:
            self._refused.add(file)

    def lost(self, file: File) -> None:
        """A file is not in the cache any more."""
        self.used -= self._sizes.pop(file, 0)
        self._spent.pop(file, None)
        self._idle.pop(file, None)
        self._turn_back(file)

    # What is needed

    def follow(self, plan: Hashable, files: Sequence[tuple[File, int]]) -> None:
        """A process will need these files, each with its bytes, in this order; each file once."""
        self.close(plan)
        self._refused.clear()
        need = self._plans[plan] = Need(files)
        for place, (file, _) in enumerate(files):
            self._places.setdefault(file, {})[plan] = place
            if file in self._sizes:
                self._idle.pop(file, None)
                self._spent.pop(file, None)
                heappush(need.present, -place)

    def at(self, plan: Hashable, wanted: int, finished: int) -> None:
        """A process asked for the first ``wanted`` files and has read the first ``finished``."""
        need = self._plans[plan]
        need.wanted = max(need.wanted, wanted)
        for place in range(need.finished, min(finished, len(need.files))):
            file = need.files[place][0]
            self._forget(plan, file)
            if file in self._sizes:
                self._shelve(file, self._spent)
        need.finished = max(need.finished, finished)
        need.cursor = max(need.cursor, need.finished)

    def close(self, plan: Hashable) -> None:
        """A process needs nothing more of its plan."""
        need = self._plans.pop(plan, None)
        for file, _ in need.files if need else ():
            self._forget(plan, file)
            if file in self._sizes and (file in self._spent or file not in self._places):
                self._shelve(file)

    def request(self, file: File, num_bytes: int) -> None:
        """Somebody waits for a file that is not here."""
        if file not in self._sizes and file not in self._fetching:
            self._waiting.setdefault(file, num_bytes)

    def cancel(self, file: File) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(file, None)

    def hold(self, file: File) -> None:
        """A file must stay until it is released as often as it was held."""
        self._held[file] += 1
        self._spent.pop(file, None)
        self._idle.pop(file, None)

    def keep(self, file: File) -> None:
        """A file must stay for good."""
        self._kept.add(file)
        self._spent.pop(file, None)
        self._idle.pop(file, None)

    def release(self, file: File) -> None:
        """Takes back one ``hold``, which counts as a use of the file."""
        self._held[file] -= 1
        if self._held[file] <= 0:
            del self._held[file]
            if file in self._sizes:
                self._shelve(file)

    # What to do

    def next(self, *, prefetch: bool = True) -> Step | None:
        """What to do now, or None; the bytes of its file count from here on.

        Args:
            prefetch: Whether files that nobody waits for may be fetched.
        """
        if self._waiting:
            file, num_bytes = next(iter(self._waiting.items()))
            evict = self._make_room(num_bytes, lambda _: True)
            # Where nothing ends that could make room, going over the budget is the only way on.
            if self._over(num_bytes) and (self._fetching or self._held):
                return Step(evict, None, 0) if evict else None
            del self._waiting[file]
            return self._start(evict, file, num_bytes)
        return self._next_ahead() if prefetch else None

    def excess(self) -> list[File]:
        """What to remove after the budget was lowered or a file turned out larger; it is gone."""
        return self._make_room(0, lambda _: True)

    def _next_ahead(self) -> Step | None:
        plans = [need for need in self._plans.values() if self._seek(need)]
        if not plans:
            return None
        need = min(plans, key=lambda need: need.cursor - need.wanted)
        file, num_bytes = need.files[need.cursor]
        distance = need.cursor - need.wanted
        near = distance < self.near
        evict = self._make_room(num_bytes, lambda other: near and other > distance + self.near)
        if self._over(num_bytes):
            return Step(evict, None, 0) if evict else None
        return self._start(evict, file, num_bytes)

    def _start(self, evict: list[File], file: File, num_bytes: int) -> Step:
        self._fetching[file] = num_bytes
        self.used += num_bytes
        return Step(evict, file, num_bytes)

    def _over(self, num_bytes: int) -> bool:
        return self.budget is not None and self.used + num_bytes > self.budget

    def _seek(self, need: Need) -> bool:
        """Moves a plan's cursor to the next file to fetch; whether there is one in reach."""
        end = min(need.wanted + self.ahead, len(need.files))
        while need.cursor < end:
            file = need.files[need.cursor][0]
            if not (file in self._sizes or file in self._fetching or file in self._refused):
                return True
            need.cursor += 1
        return False

    def _make_room(self, num_bytes: int, allowed: Callable[[int], bool]) -> list[File]:
        evict: list[File] = []
        while self._over(num_bytes) and (victim := self._victim(allowed)) is not None:
            self.lost(victim)
            evict.append(victim)
        return evict

    def _victim(self, allowed: Callable[[int], bool]) -> File | None:
        for unneeded in (self._spent, self._idle):
            if unneeded:
                return next(iter(unneeded))
        farthest = [
            (place - need.wanted, need, place)
            for name, need in self._plans.items()
            if (place := self._farthest(name, need)) is not None
        ]
        distance, need, place = max(farthest, key=lambda f: f[0], default=(0, None, 0))
        return need.files[place][0] if need and allowed(distance) else None

    def _farthest(self, name: Hashable, need: Need) -> int | None:
        """The place of the file that is here, is next needed by this plan, and that the latest."""
        while need.present:
            place = -need.present[0]
            file = need.files[place][0]
            here = file in self._sizes and file not in self._held and file not in self._kept
            if here and self._places.get(file, {}).get(name) == place:
                nearest = self._nearest(file)
                if nearest == name:
                    return place
                heappush(self._plans[nearest].present, -self._places[file][nearest])
            heappop(need.present)
        return None

    def _nearest(self, file: File) -> Hashable:
        places = self._places[file]
        return min(places, key=lambda name: places[name] - self._plans[name].wanted)

    def _shelve(self, file: File, unneeded: OrderedDict[File, None] | None = None) -> None:
        """Puts a file that is here where eviction looks for it."""
        self._spent.pop(file, None)
        self._idle.pop(file, None)
        if file in self._held or file in self._kept:
            return
        if file in self._places:
            nearest = self._nearest(file)
            heappush(self._plans[nearest].present, -self._places[file][nearest])
        else:
            (self._idle if unneeded is None else unneeded)[file] = None

    def _forget(self, plan: Hashable, file: File) -> None:
        places = self._places.get(file)
        if places is not None:
            places.pop(plan, None)
            if not places:
                del self._places[file]

    def _turn_back(self, file: File) -> None:
        """Lets the plans that need a file come past it again."""
        for name, place in self._places.get(file, {}).items():
            self._plans[name].cursor = min(self._plans[name].cursor, place)
