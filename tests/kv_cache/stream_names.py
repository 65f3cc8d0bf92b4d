"""The streams of a pool under all the names that a caller may give them."""

from types import SimpleNamespace

from cuda_standin import ON_CUDA
from hypothesis import strategies as st

import vmm.stream

DEFAULT = 1 if ON_CUDA else 0  # CU_STREAM_LEGACY; the host's 1 is another stream
# What a caller may say for a stream; the host's default stream has no second name.
STREAMS = st.sampled_from(["A", "B", "B as an object", "torch's", "0", *(["1"] if ON_CUDA else [])])


class StreamNames:
    """Two streams of ``pool``, A and B, its default stream, and torch's current one, which is one of them."""

    def __init__(self, pool):
        self.pool = pool
        self.made = [pool._core.create_stream() for _ in range(2)]
        self.current = 0  # torch's stream

    def torch_current_stream(self, ordinal):
        return self.current

    def said(self, name):
        """For the stream of this name, what a caller says."""
        a, b = self.made
        names = {"A": a, "B": b, "B as an object": SimpleNamespace(cuda_stream=b), "torch's": None}
        return names[name] if name in names else int(name)

    def handle(self, name):
        """Of the stream that is meant, for kernels."""
        if name == "torch's" and self.pool._runs_late:
            return self.current or DEFAULT
        return self.made["AB".index(name[0])] if name[0] in "AB" else DEFAULT

    def switch(self, which):
        """Torch's current stream is another, and known from now on; unless the driver fails."""
        before, self.current = self.current, 0 if which < 0 else self.made[which]
        try:
            vmm.stream.torch_stream(self.pool)
        finally:
            if (self.current or DEFAULT) not in self.pool._watched_streams:
                self.current = before

    def destroy(self):
        while self.made:
            self.pool._core.destroy_stream(self.made.pop())
