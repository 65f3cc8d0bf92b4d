"""Which blocks and sequences stay on the device when memory is short: every eviction policy, and the best
possible.

Nothing is timed: real traces are replayed through the policies that the engine has, and the same commit gives
the same numbers everywhere. csrc/policy/eviction says what each policy does, and whose it is; ``opt`` is
Belady's, which knows the future.

Conversations: of a trace with hash ids, the blocks of 512 tokens that prompts are made of, in a memory for so
many. A hit is a block that is there when a request arrives that needs it; then the request uses its blocks,
the last one first, and each that was missing comes in and drives out what is too much, at once.

- ``conversation_{blocks}_{policy}``: hits ÷ all uses of blocks.
- ``conversation_{blocks}_{policy}_of_lru_to_opt``: how much of what lies between LRU and the best it reaches.

Agentic sessions: every session, and every sub-agent, is one sequence, parked whole between its turns, in a
memory for a tenth, two tenths and four tenths of what all would have at their longest. ``agentic``: they
start as in ``vmm simulate`` (policies_turns.py); ``agentic_crowded``: they start at once, and nobody is idle
for longer than five minutes, so that all take turns throughout.

- ``{agentic}_{share}_{policy}_full_turns``: of the turns that go on from something, which found it.
- ``{agentic}_{share}_{policy}_missing``: bytes that were not there ÷ bytes that these turns went on from.
- ``…_predictive_labelled_…``: the engine is told of each parked session whether it waits for a tool.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmm import _core
from vmm.benchmarks.policies_turns import SHARES, Turn, crowded, longest_tokens, read_turns
from vmm.benchmarks.report import Report, environment, rounded
from vmm.benchmarks.trace_files import given_files, read_files, with_hash_ids
from vmm.simulate import Trace, find_model

DEVICES = ("simulation",)

TRACES = {
    "conversation": "mooncake_conversation_trace.jsonl.gz",
    "agentic": "agentic_coding_sessions.jsonl.gz",
}
CAPACITIES = (1_000, 5_859, 10_000, 30_000, 97_656)  # blocks
POLICIES = (*_core.eviction_policies, "opt")
TOKEN_BYTES = find_model("llama-3.1-8b").kv_bytes_per_token

Metrics = dict[str, float]


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("policies", "simulation", environment=environment())
    report.peers = {"opt": "Belady's algorithm, on the same stream"}
    for name, trace, path in read_traces():
        if trace.format == "agentic":
            turns = read_turns(path)
            report.metrics |= of_turns(progress, name, turns)
            report.metrics |= of_turns(progress, f"{name}_crowded", crowded(turns))
        else:
            report.metrics |= of_blocks(progress, name, trace)
    report.metrics = rounded(report.metrics.items())
    return report


def read_traces() -> list[tuple[str, Trace, Path]]:
    """Raises InvalidArgument where one is not there, and where none has hash ids."""
    files = given_files(TRACES)
    return [(name, trace, files[name]) for name, trace in with_hash_ids(read_files(files)).items()]


def of_blocks(progress: Callable[[str], None], name: str, trace: Trace) -> Metrics:
    stream = _core.EvictionStream.of_blocks(
        [
            (
                round(request.arrival_s * 1e9),
                request.hash_ids,
                request.prompt_tokens < len(request.hash_ids) * request.block_tokens,
                request.output_tokens,
            )
            for request in trace.requests
        ]
    )
    metrics: Metrics = {}
    for blocks in CAPACITIES:
        progress(f"{name}, memory for {blocks:,} blocks")
        hits = {policy: _hit_fraction(stream.replay(policy, blocks)) for policy in POLICIES}
        for policy, fraction in hits.items():
            key = f"{name}_{blocks}_{_identifier(policy)}"
            metrics[key] = fraction
            if policy not in ("lru", "opt") and hits["opt"] > hits["lru"]:
                metrics[f"{key}_of_lru_to_opt"] = (fraction - hits["lru"]) / (hits["opt"] - hits["lru"])
    return metrics


def of_turns(progress: Callable[[str], None], name: str, turns: list[Turn]) -> Metrics:
    streams = {labelled: _stream(turns, labelled) for labelled in (False, True)}
    metrics: Metrics = {}
    for share, tenths in SHARES.items():
        progress(f"{name}, {share.replace('_', ' ')} of the memory for all")
        capacity = longest_tokens(turns) * TOKEN_BYTES * tenths // 10
        arms = {_identifier(policy): (policy, False) for policy in POLICIES}
        arms["predictive_labelled"] = ("predictive", True)
        for arm, (policy, labelled) in arms.items():
            found = streams[labelled].replay(policy, capacity)
            key = f"{name}_{share}_{arm}"
            metrics[f"{key}_full_turns"] = _hit_fraction(found)
            metrics[f"{key}_missing"] = found["missing_bytes"] / max(found["wanted_bytes"], 1)
    return metrics


def _stream(turns: list[Turn], labelled: bool) -> _core.EvictionStream:
    return _core.EvictionStream.of_turns(
        [
            (
                round(turn.at_s * 1e9),
                turn.sequence,
                turn.wanted_tokens * TOKEN_BYTES,
                turn.tokens * TOKEN_BYTES,
                turn.label if labelled else 0,
                turn.new_blocks,
                turn.output_tokens,
            )
            for turn in turns
        ]
    )


def _hit_fraction(found: dict[str, int]) -> float:
    return found["hits"] / max(found["accesses"], 1)


def _identifier(policy: str) -> str:
    return policy.replace("-", "_")


def table(metrics: Metrics, name: str) -> str:
    """The hit fractions of a trace of conversations, as Markdown."""
    lines = ["| blocks | " + " | ".join(POLICIES) + " |", "|---" * (len(POLICIES) + 1) + "|"]
    for blocks in CAPACITIES:
        cells = [f"{metrics[f'{name}_{blocks}_{_identifier(policy)}']:.4f}" for policy in POLICIES]
        lines.append(f"| {blocks:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_turns(metrics: Metrics, name: str) -> str:
    """Full turns and missing bytes of agentic sessions, as Markdown."""
    arms = [*map(_identifier, POLICIES), "predictive_labelled"]
    lines = ["| memory | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for share in SHARES:
        keys = [f"{name}_{share}_{arm}" for arm in arms]
        cells = [f"{metrics[f'{key}_full_turns']:.3f}, {metrics[f'{key}_missing']:.3f}" for key in keys]
        lines.append(f"| {share.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    measured = run(lambda what: None, "simulation").metrics
    print(table(measured, "conversation"), table_of_turns(measured, "agentic"), sep="\n\n")
    print("\n" + table_of_turns(measured, "agentic_crowded"))
