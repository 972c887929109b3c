#!/usr/bin/env bash
# Installs the clients that examples/clients shows into .clients, and builds what is written in TypeScript where there
# is node 20 or newer. Does nothing when that is done already.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

stamp=.clients/.made
wanted=$({ "$python" --version; cat requirements/clients.lock; } | sha256sum)
if ! { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; }; then
  [ -x .clients/bin/python ] || "$python" -m venv .clients
  .clients/bin/python -m pip --disable-pip-version-check install -qq --no-deps --require-hashes \
    -r requirements/clients.lock
  echo "$wanted" > "$stamp"
fi

if ! command -v npm >/dev/null; then
  echo "make clients: no npm here; what needs node 20 is left out, and its tests are skipped" >&2
  exit 0
fi
for folder in clients/typescript clients/playground examples/clients; do
  stamp=$folder/node_modules/.made
  wanted=$(cat "$folder/package.json" "$folder/package-lock.json" | sha256sum)
  if ! { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; }; then
    npm --prefix "$folder" ci --silent --no-audit --no-fund --ignore-scripts
    echo "$wanted" > "$stamp"
  fi
done
npm --prefix clients/typescript run --silent build
npm --prefix clients/playground run --silent build
