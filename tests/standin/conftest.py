"""The stand-in, built on demand and loaded once into the test process."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


def _tool(name: str) -> str:
    beside = [pathlib.Path(sys.executable).parent, REPOSITORY / ".venv" / "bin"]
    path = os.pathsep.join([*map(str, beside), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is needed to build the stand-in libcuda.so.1")
    return found


@pytest.fixture(scope="session")
def standin_path() -> str:
    """Where libcuda.so.1 is. VMM_STANDIN_LIBRARY names another build, with sanitizers for example."""
    if given := os.environ.get("VMM_STANDIN_LIBRARY"):
        return given
    build = REPOSITORY / "build" / "standin"
    configure = [_tool("cmake"), "-S", str(HERE), "-B", str(build), "-G", "Ninja"]
    configure.append(f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}")
    for command in (configure, [_tool("cmake"), "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return str(build / "libcuda.so.1")


@pytest.fixture(scope="session")
def loaded(standin_path):
    import standin

    return standin.load(standin_path)


@pytest.fixture
def standin(loaded):
    """The stand-in, fresh; a test that leaves something behind fails."""
    settings = {"capacity": 1 << 30, "granularity": 2 << 20, "version": 13000, "low_alignment": 0}
    loaded.set(**settings, devices=2, undefined_counts=0, queue_limit=1024, missing_result=500)
    loaded.fail_at(0)
    loaded.fail_only("")
    loaded.reset(1)
    yield loaded
    loaded.poison(0)
    loaded.fail_at(0)
    loaded.set(**settings, undefined_counts=0)
    left = loaded.live()
    loaded.abandon()
    assert not any(left.values()), left


@pytest.fixture
def cuda(standin):
    from cuda_calls import Cuda

    return Cuda(standin.library)


@pytest.fixture
def bench(cuda):
    from conformance import Bench

    made = Bench(cuda)
    yield made
    made.close()


@pytest.fixture
def memory(bench):
    """Four accessible pages."""
    base = bench.reserve(4)
    for at in range(4):
        bench.map(base + at * bench.page, bench.create())
    bench.allow(base, 4)
    return base
