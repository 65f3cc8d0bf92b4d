"""What the plugin shows at vLLM's own Prometheus endpoint: ``vllm:vmm_…``.

vLLM takes them from its engine with steps only, so an idle engine goes on showing those of its last step:
what it has given back since shows with the next request (`vmm leases` shows it at once).
"""

from __future__ import annotations

from typing import Any, Literal

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from vmm.integrations.vllm import compat

GAUGES = {
    "mapped_bytes": "Physical memory that the KV cache has, of all workers.",
    "live_bytes": "Physical memory of KV blocks that requests use, of all workers.",
    "granted_bytes": "Physical memory that the workers may have now.",
    "pressure_bytes": "Memory that other processes of the share ask the workers to give back.",
}
COUNTERS = {
    "stalls": "How often the scheduler waited because memory was not there ahead of need.",
    "given_back_blocks": "KV blocks whose memory was given back.",
}


class VmmStats(KVConnectorStats):
    """Gauges as they are now, and counters since the last one was taken."""

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """``other`` is the later one."""
        counts = {name: self.data.get(name, 0) + other.data.get(name, 0) for name in COUNTERS}
        return VmmStats(data=self.data | other.data | counts)

    def reduce(self) -> dict[str, int | float]:
        return dict(self.data)


class VmmPromMetrics(KVConnectorPromMetrics):
    """The metrics, each with vLLM's labels."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._gauges = self._made("gauge", GAUGES)
        self._counters = self._made("counter", COUNTERS)

    def _made(self, kind: Literal["gauge", "counter"], texts: dict[str, str]) -> dict[str, dict[int, Any]]:
        return {name: compat.labelled(self, kind, f"vllm:vmm_{name}", text) for name, text in texts.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, gauges in self._gauges.items():
            if name in transfer_stats_data:
                gauges[engine_idx].set(transfer_stats_data[name])
        for name, counters in self._counters.items():
            counters[engine_idx].inc(transfer_stats_data.get(name, 0))
