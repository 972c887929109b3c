#!/usr/bin/env bash
# Makes .venv from the lock that fits this machine, and does nothing when that is done already.
#   PYTHON=python3.12        the interpreter to build it with (default: python3)
#   MEET_ENGINE=cpu|cuda     which lock (default: cuda where nvidia-smi lists a GPU)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fail() {
  echo "make setup: $*" >&2
  exit 2
}

command -v "$python" >/dev/null || fail "no $python here; install Python 3.11, 3.12 or 3.13, or set PYTHON"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
  fail "$("$python" --version) is not supported; set PYTHON to Python 3.11, 3.12 or 3.13"

engine=${MEET_ENGINE:-}
if [ -z "$engine" ]; then
  engine=cpu
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then engine=cuda; fi
fi
[ "$engine" = cpu ] || [ "$engine" = cuda ] || fail "MEET_ENGINE is '$engine'; use cpu or cuda"

if [ "$engine" = cpu ]; then
  command -v g++ >/dev/null || fail "no g++ here; vLLM compiles its sampler for this processor when it first runs"
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' ||
    fail "no Python.h of $("$python" --version) here, which vLLM compiles with; install its headers (python3-dev)"
fi

# The stamp names everything that the environment was made from, and is written last.
stamp=.venv/.meet-setup
wanted=$({ echo "$engine" "$("$python" --version)"; cat "requirements/$engine.lock" requirements/torch-cpu.txt \
  requirements/setup.sh pyproject.toml clients/python/pyproject.toml; } | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

echo "make setup: installing into .venv ($engine; two to five minutes the first time)"
rm -f "$stamp"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

if [ "$engine" = cpu ]; then
  # The CPU build from the configured index where that has it; else from PyTorch's own, for this package alone.
  pip install -qq --no-deps -r requirements/torch-cpu.txt 2>/dev/null ||
    pip install -qq --no-deps --index-url https://download.pytorch.org/whl/cpu -r requirements/torch-cpu.txt ||
    fail "torch's CPU build is neither on the configured package index nor on download.pytorch.org"
fi
# --no-deps: the lock is complete, and leaves out what the engine asks for and text models do not need.
pip install -qq --no-deps --require-hashes -r "requirements/$engine.lock"
pip install -qq --no-deps --no-build-isolation -e . -e clients/python
echo "$wanted" > "$stamp"
