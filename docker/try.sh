#!/usr/bin/env bash
# Builds the runtime image without Docker, on a Debian made here, and trains in it as its user with a read-only root.
#
#     docker/try.sh [FOLDER]      # root on Debian with buildah and mmdebstrap; some minutes; FOLDER keeps the base
#
# Where it cannot run it says why and ends with 0: a machine without buildah is no fault of the image.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in buildah mmdebstrap; do
    command -v "$tool" >/dev/null || { echo "docker/try.sh: skipped, as there is no $tool: apt-get install buildah mmdebstrap"; exit 0; }
done
scratch=$(mktemp -d)
mkdir "$scratch/probe"
if [ "$(id -u)" != 0 ] || ! mount -t tmpfs tmpfs "$scratch/probe" 2>/dev/null; then
    echo "docker/try.sh: skipped, as only root with the right to mount can enter an image"
    exit 0
fi
umount "$scratch/probe"
keep=${1:-$scratch}
image=localhost/flex-rl-try
commit=$(docker/commit.sh)
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
mounted=()
clean() {
    for path in "${mounted[@]}"; do umount --lazy "$path" || true; done
    buildah rm --all >/dev/null 2>&1 || true
    buildah rmi "$image" localhost/flex-rl-base >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap clean EXIT
stick() {  # mount, and remember it for the end
    mount "$@"
    mounted=("${*: -1}" "${mounted[@]}")
}

echo "docker/try.sh: a Debian base"
mkdir -p "$keep"
if [ ! -s "$keep/base.tar" ]; then
    sources=/etc/apt/sources.list.d/debian.sources
    [ -s "$sources" ] || sources=/etc/apt/sources.list
    mmdebstrap --quiet --variant=minbase --include=python3-venv,ca-certificates bookworm "$keep/base.tar" "$sources"
fi
container=$(buildah from scratch)
buildah add --quiet "$container" "$keep/base.tar" / >/dev/null
buildah commit --quiet "$container" localhost/flex-rl-base >/dev/null
buildah rm "$container" >/dev/null

echo "docker/try.sh: the runtime image"
# what pip needs here and the image must not keep: certificates, its settings, folders of wheels
volumes=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
for path in /etc/pip.conf "$HOME/.config/pip/pip.conf"; do
    [ -f "$path" ] && volumes+=(--volume "$path:${path/#$HOME//root}:ro")
done
for key in find-links index-url extra-index-url; do
    for path in $(python3 -m pip config get "global.$key" 2>/dev/null || true); do
        path=${path#file://}
        case $key in *index-url) path=${path%/*} ;; esac  # the files that an index names lie beside it
        [ -n "$path" ] && [ -d "$path" ] && volumes+=(--volume "$path:$path:ro")
    done
done
buildah build --quiet --pull-never --layers=false --target runtime --file docker/Dockerfile --tag "$image" "${volumes[@]}" \
    --build-arg BASE=localhost/flex-rl-base --build-arg COMMIT="$commit" . >"$scratch/build.log" 2>&1 ||
    { tail -n 30 "$scratch/build.log"; exit 1; }

echo "docker/try.sh: training in it"
container=$(buildah from --pull-never "$image")
root="$scratch/root"
mkdir "$root"
stick --bind "$(buildah mount "$container")" "$root"
mount -o remount,bind,ro "$root"
stick -t tmpfs -o mode=1777 tmpfs "$root/tmp"
stick -t tmpfs -o uid=10001,gid=10001 tmpfs "$root/app/workspace"
stick --bind /dev "$root/dev"
stick -t proc proc "$root/proc"
mapfile -t environment < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep .)
inside() {
    chroot --userspec=10001:10001 "$root" env --ignore-environment --chdir=/app "${environment[@]}" "$@"
}
label=$(buildah inspect --type image --format '{{index .OCIv1.Config.Labels "org.opencontainers.image.revision"}}' "$image")
[ "$label" = "$commit" ] || { echo "docker/try.sh: the image's label says $label"; exit 1; }
inside touch /app/written 2>/dev/null && { echo "docker/try.sh: its root can be written"; exit 1; }
inside python train.py --check >/dev/null
settings=(world.body=half_cheetah world.task=v5 world.num_envs=2 learner.n_steps=1 learner.batch_size=2 num_steps=2
    evaluation.episodes=1)
options=()
for setting in "${settings[@]}"; do options+=(--set "$setting"); done
inside python train.py --name two_steps "${options[@]}"
inside python -c '
import json
lineage = json.load(open("workspace/two_steps/lineage.json"))
print("lineage says:", lineage["attempts"][0]["git_commit"])
' | grep --quiet "$label" || { echo "docker/try.sh: its lineage does not name the commit $label"; exit 1; }
test -s "$root/app/workspace/two_steps/videos/best.mp4" || { echo "docker/try.sh: it could not draw"; exit 1; }
echo "docker/try.sh: built, entered as 10001 with a read-only root, trained two steps, drew its video"
