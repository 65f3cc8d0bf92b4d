"""What these tests run with: else everything after this would test something else."""

from pathlib import Path

import vmm

SITE = Path(__file__).parents[2] / "build" / "vllm-site"


def test_vmm_is_the_one_installed_beside_vllm():
    assert Path(vmm.__file__).is_relative_to(SITE)
    with vmm.Pool("1MiB") as pool:
        pool.check()
