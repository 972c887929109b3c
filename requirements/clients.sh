#!/usr/bin/env bash
# Installs the clients that examples/clients shows into .clients, and builds what is written in TypeScript where there
# is node 20 or newer. Does nothing when that is done already.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

environment() {  # environment FOLDER LOCK
  local stamp=$1/.made wanted
  wanted=$({ "$python" --version; cat "$2"; } | sha256sum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  [ -x "$1/bin/python" ] || "$python" -m venv "$1"
  "$1/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --require-hashes -r "$2"
  echo "$wanted" > "$stamp"
}
environment .clients requirements/clients.lock
environment .clients/chat-page requirements/chat_page.lock

if ! command -v npm >/dev/null; then
  echo "make clients: no npm here; what needs node 20 is left out, and \`make test\` skips its tests" >&2
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
