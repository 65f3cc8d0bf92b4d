"""`vmm vllm serve` from its command line to an answer over HTTP, as docs/vllm.md starts it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import engine
import pytest

LIMIT_S = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server that has 8 MiB and gives them back after half a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    options = "--tokens-only --enforce-eager --dtype float32 --max-model-len 1024 --block-size 32"
    command = [sys.executable, "-m", "vmm", "vllm", "serve", engine.model(), "--budget", "8MiB"]
    command += ["--idle", "500ms", "--host", "127.0.0.1", "--port", str(port), *options.split()]
    environment = os.environ | {
        "PYTHONPATH": engine.SITE,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("w") as file:
        child = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=file, stderr=file, start_new_session=True
        )
    try:
        until = time.monotonic() + LIMIT_S
        while _get(f"http://127.0.0.1:{port}/health") is None:
            assert child.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < until, log.read_text()[-6000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        child.send_signal(signal.SIGTERM)
        child.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # workers that outlived it
        child.wait()


def _get(address):
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.read().decode()
    except OSError:
        return None


def _generate(server, tokens, count):
    body = {
        "token_ids": tokens,
        "sampling_params": {"max_tokens": count, "temperature": 0, "ignore_eos": True, "detokenize": False},
    }
    request = urllib.request.Request(
        f"{server}/inference/v1/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


def _metric(server, name):
    """The sum of a metric over its labels."""
    lines = [line for line in _get(f"{server}/metrics").splitlines() if line.startswith(name)]
    assert lines, f"no metric {name}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_it_answers(server):
    first = _generate(server, list(range(5, 105)), 50)
    assert len(first) == 50
    assert _generate(server, list(range(5, 105)), 50) == first
    assert _metric(server, "vllm:num_preemptions_total") == 0
    assert _metric(server, "vllm:prefix_cache_hits_total") > 0
    assert _metric(server, "vllm:kv_cache_usage_perc") == 0


def test_the_metrics_of_the_page_are_at_the_endpoint(server):
    page = (engine.ROOT / "docs" / "vllm.md").read_text()
    names = set(re.findall(r"`(vllm:vmm_\w+)`", page))
    assert len(names) >= 6
    _generate(server, list(range(200, 400)), 20)
    for name in names:
        _metric(server, name)
    assert _metric(server, "vllm:vmm_mapped_bytes") > 0
    assert _metric(server, "vllm:vmm_granted_bytes") > 0
