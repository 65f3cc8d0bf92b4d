"""One engine's run: a job in JSON as the argument, the result in JSON on stdout after "RESULT ".

A job: "model", "engine" (arguments of LLM), "connector" (a kv_transfer_config, or none for stock), "audit"
(see audit.py), and "steps", a list of ["generate", first, count, tokens] | ["sleep", seconds] | ["reset"] |
["look", name] | ["touch", file] | ["wait", file] | ["fork"].
"""

import json
import os
import random
import sys
import time


def prompts(first: int, count: int) -> list[list[int]]:
    """Prompts of 20 to 300 tokens; every third starts with one of four shared prefixes."""
    found = []
    for number in range(first, first + count):
        draw = random.Random(number)
        prefix = random.Random(1000 + number % 4).choices(range(3, 512), k=160) if number % 3 == 0 else []
        found.append(prefix + draw.choices(range(3, 512), k=draw.randrange(20, 140)))
    return found


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled_figures() -> list[dict]:
    """Of the workers in this process, once their threads have done what they were asked to."""
    from vmm.integrations.vllm.link import local_mappers

    before = None
    while before != (now := [mapper.memory.figures() for mapper in local_mappers.values()]):
        before = now
        time.sleep(0.2)
    return now


def look(llm) -> dict:
    """What only a process that is all in one can see."""
    seen = {"rss": rss_bytes()}
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    if core is None:
        return seen
    scheduler = core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    seen |= {"usage": pool.get_usage(), "free": pool.get_num_free_blocks(), "blocks": pool.num_gpu_blocks}
    growth = getattr(pool, "growth", None)
    if growth is not None:
        seen |= {"present": growth.rows.present, "stalls": growth.stalls, "capacity": growth.rows.capacity}
        seen["figures"] = settled_figures()
    return seen


def metrics(llm) -> dict:
    wanted = ("vllm:num_preemptions", "vllm:prefix_cache_hits", "vllm:prefix_cache_queries")
    return {m.name: m.value for m in llm.get_metrics() if m.name in wanted or m.name.startswith("vllm:vmm")}


def fork_idle_child() -> None:
    """A child that does nothing, for longer than any test, and holds what a child inherits."""
    if os.fork() == 0:
        for stream in range(3):  # else whoever reads ours would wait for it
            os.close(stream)
        time.sleep(3600)
        os._exit(0)


def main() -> None:  # noqa: PLR0912  one branch for each step that there is
    job = json.loads(sys.argv[1])
    started = time.monotonic()
    from vllm import LLM, SamplingParams

    options = {
        "skip_tokenizer_init": True, "enforce_eager": True, "dtype": "float32", "seed": 1,
        "max_model_len": 1024, "block_size": 32, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 64,
        "disable_log_stats": False,
    }  # fmt: skip
    options |= job.get("engine", {})
    if job.get("connector"):
        options["kv_transfer_config"] = job["connector"]
    if job.get("audit"):
        import audit

        audit.install()
    llm = LLM(model=job["model"], **options)
    result = {"start_s": time.monotonic() - started, "tokens": [], "looks": {}, "resets": []}
    for name, *rest in job["steps"]:
        if name == "generate":
            first, count, tokens = rest
            params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            began, cpu = time.monotonic(), time.process_time()
            out = llm.generate(
                [{"prompt_token_ids": p} for p in prompts(first, count)], params, use_tqdm=False
            )
            result["generate_s"] = time.monotonic() - began
            result["generate_cpu_s"] = time.process_time() - cpu
            result["tokens"].append([list(o.outputs[0].token_ids) for o in out])
        elif name == "sleep":
            time.sleep(rest[0])
        elif name == "nap":
            llm.sleep(level=1)
            result["looks"]["asleep"] = look(llm)
            llm.wake_up()
        elif name == "touch":
            open(rest[0], "w").close()
        elif name == "wait":
            while not os.path.exists(rest[0]):
                time.sleep(0.02)
        elif name == "fork":
            fork_idle_child()
        elif name == "reset":
            result["resets"].append(llm.reset_prefix_cache())
        elif name == "look":
            result["looks"][rest[0]] = look(llm)
    result["metrics"] = metrics(llm)
    if job.get("audit"):
        result["written_blocks"] = len(audit.written_blocks)
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
