"""VmmConnector beside another connector, and what vLLM refuses beside any."""

import engine
import pytest
from vllm.v1.core.sched.scheduler import Scheduler


def test_beside_another_connector_blocks_can_be_written_when_they_are_handed_out(tmp_path):
    """Also the order "zero before bind": see audit.py."""
    work = [["generate", 0, 12, 40], ["reset"], ["generate", 0, 12, 40], ["sleep", 2], ["look", "idle"]]
    stock = engine.run({"steps": work})
    example = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [engine.connector(budget="4MiB", idle="500ms"), example]},
    }
    ours = engine.run({"steps": work, "connector": both, "audit": True})
    assert ours["tokens"] == stock["tokens"], ours["log"]
    assert ours["resets"] == [True]
    assert ours["written_blocks"] > 100
    assert ours["looks"]["idle"]["figures"][0]["mapped_bytes"] <= 256 << 10
    stored = list(tmp_path.rglob("*.safetensors"))
    assert len(stored) > 10, "the other connector did not save what it saw"


class Anything:
    """Answers whatever it is asked."""

    def __getattr__(self, name):
        return Anything()

    def __call__(self, *args, **kwargs):
        return Anything()


def test_encoder_decoder_models_are_refused_by_vllm_itself():
    """In words that docs/vllm.md repeats: no connector serves them."""
    config = Anything()
    config.observability_config = Anything()
    config.observability_config.kv_cache_metrics_sample = 0.01
    config.model_config = Anything()
    config.model_config.is_encoder_decoder = True
    with pytest.raises(AssertionError, match="Encoder-decoder models are not currently supported"):
        Scheduler(config, Anything(), Anything(), block_size=16)
