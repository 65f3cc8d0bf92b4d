"""`vmm bench vllm` without vLLM: where it looks for it, and what it makes of what it has watched."""

import sys

import pytest

from vmm.benchmarks import vllm, vllm_environment
from vmm.errors import Error


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("VMM_VLLM_ENV", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def environment(folder):
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return str(folder / "bin" / "python")


def test_without_vllm_it_says_where_it_looks():
    with pytest.raises(Error, match=r"no vLLM at hand: .*VMM_VLLM_ENV.*make test-vllm"):
        vllm_environment.interpreter()


def test_the_environment_that_is_named_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("VMM_VLLM_ENV", str(tmp_path / "absent"))
    with pytest.raises(Error, match=f"no vLLM at {tmp_path}/absent"):
        vllm_environment.interpreter()


def test_one_that_the_tests_made_is_taken_when_it_is_complete(tmp_path, monkeypatch):
    place = tmp_path / "vmm" / "venv-vllm-abc"
    python = environment(place)
    with pytest.raises(Error, match="no vLLM at hand"):
        vllm_environment.interpreter()
    (place / "complete").touch()
    monkeypatch.setattr(vllm_environment.vmm, "__file__", str(tmp_path / "vmm" / "__init__.py"))
    with pytest.raises(Error, match="make build/vllm-site"):
        vllm_environment.interpreter()
    (tmp_path / "build" / "vllm-site").mkdir(parents=True)
    assert vllm_environment.interpreter() == (python, {"PYTHONPATH": str(tmp_path / "build" / "vllm-site")})


def test_where_vllm_is_installed_beside_vmm_this_python_is_it(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert vllm_environment.interpreter() == (sys.executable, {})


@pytest.mark.parametrize(
    ("watched", "fraction", "milliseconds"),
    [
        ([[0, 100], [1000, 100], [1013, 4], [5000, 0]], 1.0, 13),
        ([[0, 100], [1020, 6], [1040, 5], [5000, 5]], 0.95, 40),
        ([[0, 100], [1500, 60], [5000, 60]], 0.4, 500),  # that is all that came back
        ([[0, 100], [5000, 100]], 0.0, -1000),  # nothing did
    ],
)
def test_what_was_given_back_and_when(watched, fraction, milliseconds, monkeypatch):
    monkeypatch.setattr(vllm, "IDLE_S", 1.0)
    assert vllm._given_back(watched) == (pytest.approx(fraction), milliseconds)


def test_an_engine_that_fails_is_an_error_with_its_words(monkeypatch):
    monkeypatch.setattr(vllm_environment, "interpreter", lambda: (sys.executable, {}))
    with pytest.raises(Error, match=r"vLLM ended with 1: (.|\n)*vllm"):
        vllm_environment.result("schedule")


def test_an_engine_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 600 &\nsleep 600\n")  # its child holds its end of the pipe, too
    python.chmod(0o755)
    monkeypatch.setattr(vllm_environment, "interpreter", lambda: (str(python), {}))
    monkeypatch.setattr(vllm_environment, "LIMIT_S", 0.2)
    with pytest.raises(Error, match=r"vLLM took longer than 0\.2 s"):
        vllm_environment.result("schedule")
