"""What ``vmm doctor`` says of the packages that are installed."""

import pytest

from vmm.doctor import software


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a distribution that hides the installed one of its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, version, *lines):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        head = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}")
        (folder / "METADATA").write_text("\n".join([*head, *lines, ""]))
        return tmp_path

    return make


def test_a_torch_that_is_too_old(install):
    install("kvmm", "0.1.0", 'Requires-Dist: torch>=2.11; extra == "torch"')
    root = install("torch", "2.1.0")
    (root / "torch").mkdir()
    (root / "torch" / "version.py").write_text("cuda: Optional[str] = '12.1'\nhip: Optional[str] = None\n")
    finding = software.torch(facts := {})
    assert finding.status == "warning"
    assert "2.1.0, not a supported version (>=2.11)" in finding.found
    assert "built for CUDA 12.1" in finding.found
    assert finding.advice == "pip install 'torch>=2.11'"
    assert facts["torch"] == {"version": "2.1.0", "supported": ">=2.11", "in_range": False, "cuda": "12.1"}


def test_the_range_is_the_installed_vmm_s_own(install):
    install("torch", "3.5")
    install("kvmm", "0.1.0", 'Requires-Dist: torch>=3,!=3.4; extra == "torch"')
    assert software.torch({}).found.startswith("3.5 (supported: >=3,!=3.4), of an unknown build")


def test_another_vmm_installed_than_running(install):
    install("kvmm", "9.9")
    assert software.vmm_itself({}).status == "warning"


def test_missing_packages_are_told_apart(monkeypatch):
    installed = software._installed
    monkeypatch.setattr(software, "_installed", lambda name: None if name == "torch" else installed(name))
    finding = software.torch(facts := {})
    advice = f"pip install 'torch{software._supported('torch')}'"
    assert finding == ("warning", "not installed; not needed by vmm.Pool", advice)
    assert facts["torch"]["version"] is None
    monkeypatch.setattr(software, "_installed", lambda name: None if name == "kvmm" else installed(name))
    assert "not declared" in software.transformers({}).found
    assert software.vmm_itself({}).status == "warning"


@pytest.mark.parametrize(
    ("version", "supported", "fits"),
    [
        ("2.11", ">=2.11", True),
        ("2.11.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("2.12.0a0+git1234", ">=2.11", True),
        ("5.17.0", ">=5.17,<6", True),
        ("6.0.0.dev0", ">=5.17,<6", False),
        ("6", ">=5.17,<6", False),
        ("10.0", ">9.9,!=10", False),
    ],
)
def test_version_ranges(version, supported, fits):
    assert software.in_range(version, supported) is fits


def test_an_unknown_clause_is_not_guessed_at():
    with pytest.raises(ValueError, match="~="):
        software.in_range("1.0", "~=1.0")
