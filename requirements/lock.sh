#!/usr/bin/env bash
# Makes the locks anew from the .in files (Linux, x86-64, Python 3.11 to 3.13). Needs uv.
set -euo pipefail
cd "$(dirname "$0")"
compile() {  # compile NAME [more arguments]
  local name=$1
  shift
  uv pip compile "$name.in" --override "$name-overrides.txt" --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --no-annotate --quiet \
    --output-file "$name.lock" "$@"
}
# FIND_LINKS or the index below must hold torch's CPU build. It is not in the lock itself: PyTorch's index and a
# mirror may hold different files of the same version, so setup.sh installs it by version alone.
compile cpu ${FIND_LINKS:+--find-links "$FIND_LINKS"} --extra-index-url https://download.pytorch.org/whl/cpu \
  --no-emit-package torch
compile cuda
# Ray is laid over .venv, and leaves out what is there. The CPU's lock stands for both: they agree on what Ray needs.
already=$(sed -n 's/^\([a-z0-9.-]*\)==.*/--no-emit-package \1/p' cpu.lock)
uv pip compile ray.in --constraint cpu.lock --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --generate-hashes --no-header --no-annotate --quiet --output-file ray.lock $already
# The clients of examples/clients, the chat page there, the documentation and the bill of materials have environments of
# their own.
for name in clients chat_page docs sbom; do
  uv pip compile "$name.in" --python-version 3.11 --universal --generate-hashes --no-header --no-annotate --quiet \
    --output-file "$name.lock"
done
