"""vLLM's KV cache on vmm: memory follows the live blocks, and no file of vLLM is patched.

vLLM finds `register` by the entry point ``vllm.general_plugins`` and calls it in each of its processes.
"""


def register() -> None:
    """Makes ``"kv_connector": "VmmConnector"`` known to vLLM. Calling it again does nothing."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if "VmmConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(
            "VmmConnector", "vmm.integrations.vllm.connector", "VmmConnector"
        )
