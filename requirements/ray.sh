#!/usr/bin/env bash
# Lays Ray Serve over the packages of .venv, in .clients/ray, and runs the tests that need it.
#   TESTS="tests/server/test_ray_serve.py"  these
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
folder=.clients/ray

stamp=$folder/.made
wanted=$({ "$python" --version; cat requirements/ray.lock; } | sha256sum)
if ! { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; }; then
  rm -rf "$folder"
  "$python" -m pip --disable-pip-version-check install -qq --no-deps --require-hashes --target "$folder" \
    -r requirements/ray.lock
  echo "$wanted" > "$stamp"
fi
# Ray's processes inherit the path, so that its workers find what is here too.
PYTHONPATH=$PWD/$folder${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest -m "slow or not slow" -s \
  ${TESTS:-tests/server/test_ray_front.py tests/server/test_ray_serve.py}
