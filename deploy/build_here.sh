#!/usr/bin/env bash
# Builds the image of the Dockerfile with buildah in a chroot, where there is no container engine and no registry of
# images: the base is made of Debian's packages. Needs root, Debian 12, buildah, mmdebstrap.
#   deploy/build_here.sh [TARGET]       cpu by default; the image is called localhost/meet:TARGET
# Packages of Python come from where pip is told to look on this machine; of that, empty mount points are in the image.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-cpu}
base=localhost/meet-base:bookworm
folder=build/image
mkdir -p "$folder"

fail() {
  echo "deploy/build_here.sh: $*" >&2
  exit 2
}
[ "$(id -u)" = 0 ] || fail "needs root"
for tool in buildah mmdebstrap; do command -v "$tool" >/dev/null || fail "no $tool here: apt-get install $tool"; done

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
  echo "making $base of Debian's packages"
  # With Python's headers, as the images of Python have them: what vLLM compiles includes them.
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv,python-is-python3,libpython3-dev \
    bookworm "$folder/base.tar"
  made=$(buildah from scratch)
  buildah add --quiet "$made" "$folder/base.tar" / >/dev/null
  buildah config --cmd python3 "$made"
  buildah commit --quiet --rm "$made" "$base" >/dev/null
  rm "$folder/base.tar"
fi

# pip's settings here as a file for the build, and every local folder or file that they name at its own place.
settings=$folder/pip.conf
python3 -m pip config list |
  sed -nE "s/^(global|:env:)\.\.?(cert|find-links|index-url|extra-index-url|trusted-host|timeout)='(.*)'$/\2 = \3/p" |
  sort -u -t= -k1,1 | { echo "[global]"; cat; } > "$settings"
places=()
for word in $(tail -n +2 "$settings"); do
  path=${word#file://}
  path=${path%/simple}  # an index's files may stand beside it
  while [ "$path" != / ] && [ ! -e "$path" ]; do path=$(dirname "$path"); [ "$path" != . ] || break; done
  case $path in /?*) places+=(--volume "$path:$path:ro") ;; esac
done

log=$folder/build.log
echo "building meet:$target (what the build says is in $log)"
buildah build --quiet --isolation chroot --format docker --pull-never --build-arg "BASE=$base" \
  --secret "id=pip.conf,src=$settings" "${places[@]}" --target "$target" --tag "localhost/meet:$target" . > "$log" 2>&1 ||
  { tail -20 "$log" >&2; exit 1; }
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "localhost/meet:$target"
