"""``python -m vmm`` is the ``vmm`` command."""

from vmm.cli import main

main()
