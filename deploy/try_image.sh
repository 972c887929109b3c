#!/usr/bin/env bash
# Runs an image that deploy/build_here.sh made, as `docker run --read-only --tmpfs /tmp:exec --cap-drop ALL --network none
# --security-opt no-new-privileges` would: in namespaces of its own, as the image's user, with the image's variables and
# command. Then asks it, inside (deploy/ask_image.py). Needs root, buildah, util-linux, iproute2.
#   deploy/try_image.sh BUNDLE [IMAGE]
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=${1:?folder of a bundle}
image=${2:-localhost/meet:cpu}
[ -f "$bundle/meet.json" ] || { echo "deploy/try_image.sh: no bundle at $bundle: \`make demo\` makes one" >&2; exit 2; }

container=$(buildah from --pull-never "$image")
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
mkdir -p "$root/bundle" "$root/ask"  # a container engine makes mount points in the container's own layer, as this does
buildah inspect --type image "$image" > "$root/ask/image.json"
cp deploy/ask_image.py "$root/ask/"

ROOT=$root BUNDLE=$(realpath "$bundle") unshare --mount --pid --fork --net --ipc --uts --kill-child bash -euo pipefail -c '
  ip link set lo up
  mount --make-rprivate /
  mount --bind "$ROOT" "$ROOT"
  mount -t proc proc "$ROOT/proc"
  mount -t sysfs -o ro sysfs "$ROOT/sys"
  mount -t tmpfs -o mode=1777,exec,size=4g tmpfs "$ROOT/tmp"
  mount -t tmpfs -o mode=755 tmpfs "$ROOT/dev"
  for device in null zero random urandom; do touch "$ROOT/dev/$device"; mount --bind "/dev/$device" "$ROOT/dev/$device"; done
  mkdir "$ROOT/dev/shm"
  mount -t tmpfs -o mode=1777,size=2g tmpfs "$ROOT/dev/shm"
  mount --bind "$BUNDLE" "$ROOT/bundle"
  mount -o remount,bind,ro "$ROOT/bundle"
  mount -o remount,bind,ro "$ROOT"
  cd "$ROOT"
  exec chroot "$ROOT" python3 /ask/ask_image.py /ask/image.json
'
