"""Eviction policies as their papers describe them, in the plainest way: who is asked looks at everything. All
units have one byte."""

import math
from collections import Counter, OrderedDict


class Lru:
    def __init__(self, capacity):
        self.units = []

    def access(self, unit, **features):
        self.leave(unit)
        self.units.append(unit)

    def victim(self, now_s):
        return self.units[0]

    def evicted(self, unit):
        self.leave(unit)

    def leave(self, unit):
        if unit in self.units:
            self.units.remove(unit)


class Lfu(Lru):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.uses = Counter()

    def access(self, unit, **features):
        super().access(unit)
        self.uses[unit] += 1

    def victim(self, now_s):
        return min(self.units, key=lambda unit: self.uses[unit])

    def evicted(self, unit):
        super().evicted(unit)
        del self.uses[unit]


class Priority(Lru):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.capacity, self.priorities = capacity, {}

    def access(self, unit, priority=0, **features):
        super().access(unit)
        self.priorities[unit] = priority

    def victim(self, now_s):
        high = [unit for unit in self.units if self.priorities[unit] > 1]
        among = high if len(high) > self.capacity // 2 else self.units
        return min(among, key=lambda unit: self.priorities[unit])


class TwoQueue:
    def __init__(self, capacity):
        self.a1in, self.a1out, self.am = [], [], []
        self.kin, self.kout = capacity // 4, capacity // 2

    def access(self, unit, **features):
        if unit in self.am:
            self.am.remove(unit)
            self.am.append(unit)
        elif unit in self.a1out:
            self.a1out.remove(unit)
            self.am.append(unit)
        elif unit not in self.a1in:
            self.a1in.append(unit)

    def victim(self, now_s):
        return self.a1in[0] if len(self.a1in) > self.kin or not self.am else self.am[0]

    def evicted(self, unit):
        if unit in self.am:
            self.am.remove(unit)
            return
        self.a1in.remove(unit)
        self.a1out = [*self.a1out, unit][-self.kout :] if self.kout else []


class MultiQueue:
    LIFETIME = 10_000

    def __init__(self, capacity):
        self.queues = [OrderedDict() for _ in range(8)]  # of each unit: when it expires
        self.uses, self.out = {}, OrderedDict()
        self.most_out, self.time = 4 * capacity, 0

    def access(self, unit, **features):
        for queue in self.queues:
            queue.pop(unit, None)
        self.uses[unit] = self.uses.get(unit, self.out.pop(unit, 0)) + 1
        self.queues[min(7, int(math.log2(self.uses[unit])))][unit] = self.time + self.LIFETIME
        self.time += 1
        for below, queue in zip(self.queues, self.queues[1:], strict=False):
            if queue and next(iter(queue.values())) < self.time:
                below[queue.popitem(last=False)[0]] = self.time + self.LIFETIME

    def victim(self, now_s):
        return next(next(iter(queue)) for queue in self.queues if queue)

    def evicted(self, unit):
        for queue in self.queues:
            queue.pop(unit, None)
        self.out[unit] = self.uses.pop(unit)
        while len(self.out) > self.most_out:
            self.out.popitem(last=False)


class S3Fifo:
    def __init__(self, capacity):
        self.small, self.main, self.ghosts, self.uses = [], [], [], {}
        self.most_small = capacity // 10
        self.most_ghosts = capacity - capacity // 10

    def access(self, unit, **features):
        if unit in self.uses:
            self.uses[unit] = min(self.uses[unit] + 1, 3)
            return
        self.uses[unit] = 0
        if unit in self.ghosts:
            self.ghosts.remove(unit)
            self.main.append(unit)
        else:
            self.small.append(unit)

    def victim(self, now_s):
        while True:
            if len(self.small) > self.most_small or not self.main:
                unit = self.small[0]
                if self.uses[unit] <= 1:
                    return unit
                self.main.append(self.small.pop(0))
                self.uses[unit] = 0
            else:
                unit = self.main[0]
                if self.uses[unit] == 0:
                    return unit
                self.main.append(self.main.pop(0))
                self.uses[unit] -= 1

    def evicted(self, unit):
        del self.uses[unit]
        if unit in self.main:
            self.main.remove(unit)
        else:
            self.small.remove(unit)
            self.ghosts = [*self.ghosts, unit][-self.most_ghosts :] if self.most_ghosts else []


PLAIN = {"lru": Lru, "lfu": Lfu, "2q": TwoQueue, "mq": MultiQueue, "s3-fifo": S3Fifo, "priority": Priority}


class Predictive:
    """As the facts of tiers have it. Everything is scored whenever a victim is wanted."""

    EDGES = (0.0, *(2 ** (n / 2) for n in range(24)), 3600.0)
    PRIOR, REFRESH_S = 64, 3

    def __init__(self):
        self.units, self.held = {}, set()
        self.events, self.entered = Counter(), Counter()
        self.index, self.hazards = {}, {}
        self.accesses, self.refreshed_s = 0, None
        self.categories = {()}
        self.refresh()

    def advance(self, now_s):
        for unit in self.units.values():
            while unit["bin"] + 1 < len(self.EDGES) and now_s - unit["at_s"] >= self.EDGES[unit["bin"] + 1]:
                unit["bin"] += 1
                for category in prefixes(unit["path"]):
                    self.entered[category, unit["bin"]] += 1
        if self.refreshed_s is None or now_s - self.refreshed_s >= self.REFRESH_S:
            self.refresh()
            self.refreshed_s = now_s

    def access(self, unit, at_s, parent=None, **features):
        self.advance(at_s)
        before = self.units.get(unit)
        if before:
            for category in prefixes(before["path"]):
                self.events[category, before["bin"]] += 1
        uses = before["uses"] + 1 if before else 1
        path = path_of(uses, **features)
        self.accesses += 1
        keep = before["parent"] if before and unit in self.held else parent
        self.units[unit] = {
            "at_s": at_s, "bin": 0, "path": path, "uses": uses, "used": self.accesses, "parent": keep
        }  # fmt: skip
        for category in prefixes(path):
            self.entered[category, 0] += 1
            if category not in self.categories:  # until the next refresh it is worth what its parent is
                self.categories.add(category)
                self.index[category] = self.index[category[:-1]]
                self.hazards[category] = self.hazards[category[:-1]]
        self.held.add(unit)

    def refresh(self):
        for category in sorted(self.categories, key=len):
            hazard = []
            for b in range(len(self.EDGES) - 1):
                events, entered = self.events[category, b], self.entered[category, b]
                if category:
                    above = self.hazards[category[:-1]][b]
                    hazard.append((events + self.PRIOR * above) / (entered + self.PRIOR))
                else:
                    hazard.append((events + 0.01) / (entered + 1))
            self.hazards[category] = hazard
            self.index[category] = [self.best_from(hazard, b) for b in range(len(hazard))] + [0.0]

    def best_from(self, hazard, first):
        best, alive, uses, seconds = 0.0, 1.0, 0.0, 0.0
        for b in range(first, len(hazard)):
            uses += alive * hazard[b]
            seconds += alive * (self.EDGES[b + 1] - self.EDGES[b]) * (1 - hazard[b] / 2)
            alive *= 1 - hazard[b]
            best = max(best, uses / seconds)
        return best

    def scores(self, now_s):
        """Of everything held, each at least what those are that follow it."""
        self.advance(now_s)
        scores = {unit: self.index[self.units[unit]["path"]][self.units[unit]["bin"]] for unit in self.held}
        for unit in sorted(self.held, reverse=True):  # children have greater numbers
            parent = self.units[unit]["parent"]
            if parent in self.held:
                scores[parent] = max(scores[parent], scores[unit])
        return scores

    def last(self, unit):
        return self.units[unit]["used"]

    def evicted(self, unit):
        self.held.remove(unit)


def prefixes(path):
    return [path[:length] for length in range(len(path) + 1)]


def path_of(uses, *, label=0, whole_sequence=False, partial=False, new_blocks=0, output_tokens=0, guess_ns=0):
    path = [("label", label)] if label else []
    if guess_ns:
        seconds = guess_ns // 1_000_000_000
        path.append(("guess", min(12, math.floor(math.log2(seconds)) + 1 if seconds else 0)))
    if not whole_sequence:
        path += [("partial", partial), ("uses", math.ceil(math.log2(uses)))]
    path.append(("new", min(4, int(math.log2(max(new_blocks, 1))) // 2)))
    path.append(("output", min(4, int(math.log2(output_tokens + 1)) // 2)))
    return tuple(path)
