"""The sdist builds, and the wheel that is built from it works in an environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(*command, cwd):
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.long
@pytest.mark.timeout(1500)  # the extension is compiled anew, perhaps on a machine that is busy
def test_sdist_and_wheel(tmp_path):
    # `build` makes the sdist and then the wheel from it, so both are tried.
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path)
    [wheel] = tmp_path.glob("kvmm-*.whl")
    assert len(list(tmp_path.glob("kvmm-*.tar.gz"))) == 1
    venv.create(tmp_path / "fresh", with_pip=True)
    python = str(tmp_path / "fresh" / "bin" / "python")
    call(python, "-m", "pip", "install", "--quiet", str(wheel), cwd=tmp_path)
    code = "import vmm; pool = vmm.Pool('1MiB'); pool.check(); print(vmm.__version__)"
    assert call(python, "-c", code, cwd=tmp_path) == "0.1.0\n"
    assert "demo" in call(str(tmp_path / "fresh" / "bin" / "vmm"), "--help", cwd=tmp_path)
    files = call(python, "-m", "pip", "show", "--files", "kvmm", cwd=tmp_path)
    for expected in (
        "vmm/py.typed",
        "vmm/_core.pyi",
        "vmm/integrations/transformers/cache.py",
        "vmm/benchmarks/growth.py",
        "vmm/testing/driver_contract.py",
    ):
        assert expected in files
