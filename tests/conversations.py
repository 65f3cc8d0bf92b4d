"""A small trace with hash ids, in Mooncake's format: chats whose turns each begin with the turn before."""

import json
import random

BLOCK = 512


def conversations(chats: int = 12, turns: int = 4, seed: int = 1, gap_s: float = 2.0) -> str:
    """All chats begin with the same block. A turn has the whole blocks of the one before, and new ones where
    its tokens went on; its last block is not whole. A chat's turns come in order, ``gap_s`` apart, and what
    chats do is mixed."""
    chances = random.Random(seed)
    fresh = iter(range(1, 1 << 30))
    whole = {chat: [0] for chat in range(chats)}
    lines = []
    for turn in range(turns):
        for chat in range(chats):
            whole[chat] += [next(fresh) for _ in range(chances.randint(1, 3))]
            rest = chances.randint(1, BLOCK - 1)
            ids = [*whole[chat], next(fresh)]
            at_ms = round(1000 * gap_s * (turn * chats + chat))
            row = {"timestamp": at_ms, "input_length": BLOCK * len(whole[chat]) + rest}
            lines.append(json.dumps(row | {"output_length": chances.randint(2, 40), "hash_ids": ids}))
    return "\n".join(lines)
