"""Another model, in one process, and settings."""

import engine
import pytest

WORK = [["generate", 0, 24, 80], ["look", "busy"], ["generate", 0, 24, 20], ["sleep", 3], ["look", "idle"]]


def compare(stock, ours):
    assert ours["tokens"] == stock["tokens"], ours["log"]
    assert ours["metrics"].items() >= stock["metrics"].items()
    busy, idle = (ours["looks"][name]["figures"][0]["mapped_bytes"] for name in ("busy", "idle"))
    assert idle <= 0.1 * busy


def test_groups_that_overlay_each_other():
    """Olmo 3 has layers with a sliding window and layers without: two groups of blocks."""
    job = {"model": engine.olmo(), "steps": WORK}
    stock = engine.run(job)
    assert sum(len(set(tokens)) > 15 for tokens in stock["tokens"][0]) > 12
    compare(stock, engine.run(job | {"connector": engine.connector(budget="48MiB", idle="500ms")}))


def test_latent_attention_whose_blocks_share_pages():
    """One request at a time: in vLLM's MLA for the CPU, tokens depend on what else is in the batch."""
    work = [["generate", 0, 6, 40], ["look", "busy"], ["generate", 0, 6, 20], ["sleep", 3], ["look", "idle"]]
    job = {"model": engine.deepseek(), "steps": work, "engine": {"max_num_seqs": 1}}
    stock = engine.run(job)
    assert sum(len(set(tokens)) > 15 for tokens in stock["tokens"][0]) > 3
    compare(stock, engine.run(job | {"connector": engine.connector(budget="48MiB", idle="500ms")}))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"budgte": "1GiB"}, "unknown key 'budgte'"),
        ({"budget": "many"}, "budget is 'many'"),
        ({"idle": "soon"}, "'idle' is 'soon'"),
        ({"minimum": "1GiB"}, "only together with 'share'"),
        ({"share": "gpu0", "priority": "high"}, "'priority' is 'high'"),
        ({"share": "gpu0", "budget": "1GiB", "minimum": "2GiB"}, "more than 'budget'"),
        ({"share": 7}, "'share' is 7"),
        ({"page": 0}, "page is 0"),
    ],
)
def test_bad_settings_name_the_key(extra, reason):
    from vmm.integrations.vllm.settings import settings_of

    with pytest.raises(ValueError, match=reason):
        settings_of(extra)


def test_settings_have_defaults():
    from vmm.integrations.vllm.settings import Settings, settings_of

    assert settings_of({}) == Settings(None, None, 0, 0, 5.0, None)
    given = {
        "budget": "40GiB",
        "share": "gpu0",
        "minimum": "4GiB",
        "priority": 3,
        "idle": "500ms",
        "page": "4MiB",
    }
    assert settings_of(given) == Settings(40 << 30, "gpu0", 4 << 30, 3, 0.5, 4 << 20)


@pytest.mark.parametrize("version", ["0.30.1", "0.34.0", "1.0", "dev"])
def test_another_version_says_what_to_install(version):
    from vmm.integrations.vllm.compat import check_version

    with pytest.raises(RuntimeError, match=r"vLLM 0\.31 to 0\.33, and this is .*install"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.33.1rc1+cpu"])
def test_tested_versions_pass(version):
    from vmm.integrations.vllm.compat import check_version

    check_version(version)
