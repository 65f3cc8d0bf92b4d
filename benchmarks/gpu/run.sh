#!/bin/sh
# All that needs a GPU, in one call of less than nine minutes: see benchmarks/gpu/__main__.py.
# PYTHON names the interpreter (one with torch), OUT the folder for the results.
cd "$(dirname "$0")/../.." || exit 1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
