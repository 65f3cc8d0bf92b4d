"""vLLM's KV cache on vmm: memory follows the live blocks, and no file of vLLM is patched.

vLLM finds `register` by the entry point ``vllm.general_plugins`` and calls it in each of its processes.
"""


def register() -> None:
    """Makes ``"kv_connector": "VmmConnector"`` known to vLLM. Calling it again does nothing."""
    from vmm.integrations.vllm import compat

    compat.make_known("VmmConnector", "vmm.integrations.vllm.connector")
