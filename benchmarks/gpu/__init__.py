"""The GPU script: run.sh beside this file. It runs from a checkout, not from an installed package."""
