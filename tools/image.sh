#!/usr/bin/env bash
# Build the container image without a daemon and without a registry, then use it as a hospital would.
#
#   tools/image.sh FOLDER          needs root, buildah, debootstrap and a Debian mirror
#
# The base is a minimal Debian with Python (BASE names another one, or a folder that holds one). The
# image makes a phantom and harmonizes it as an unknown user, on a read-only root file system, in a
# network namespace without a network. WHEELS names a folder of wheels, CERT the certificates of a
# proxy, IMAGE an image in FOLDER/storage that is there already and is not built again. The image's
# size and the seconds come last.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: tools/image.sh FOLDER" >&2; exit 64; }
folder=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)
BASE=${BASE:-$folder/debian}
WHEELS=${WHEELS:-}
CERT=${CERT:-}
UNKNOWN=12345
image=${IMAGE:-localhost/harmonizer:local}
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
build() { buildah --root "$folder/storage" --runroot "$folder/run" "$@"; }

base() { # the name of the base image, made first where BASE is a folder
    if [ "$BASE" = "$folder/debian" ] && [ ! -d "$BASE" ]; then
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm \
            "$BASE" >&2
    fi
    [ -d "$BASE" ] || { echo "$BASE"; return; }
    [ -z "$CERT" ] || install -D -m 644 "$CERT" "$BASE/etc/ssl/certs/ca-certificates.crt"
    local scratch
    scratch=$(build from scratch)
    tar -C "$BASE" --one-file-system --exclude=./proc/* --exclude=./sys/* --exclude=./var/cache/apt \
        -cf "$folder/base.tar" .
    build add -q "$scratch" "$folder/base.tar" / > /dev/null
    build commit -q --rm "$scratch" localhost/base:local > /dev/null
    rm "$folder/base.tar"
    echo localhost/base:local
}

revision() { git -C "$here" rev-parse HEAD 2> /dev/null || echo unknown; }
if [ -z "${IMAGE:-}" ]; then
    base_image=$(base)
    options=(--build-arg "BASE_IMAGE=$base_image" --build-arg "REVISION=$(revision)")
    [ -z "$CERT" ] || options+=(--build-arg "PIP_CERT=/etc/ssl/certs/ca-certificates.crt")
    [ -z "$WHEELS" ] || options+=(--volume "$WHEELS:/wheels:ro" --build-arg PIP_FIND_LINKS=/wheels)
    started=$SECONDS
    build bud --pull-never --tag "$image" "${options[@]}" "$here"
    echo "built in $((SECONDS - started)) s"
fi

# An unknown user, nothing writable but /tmp, /out and /work, no network.
container=$(build from --pull-never "$image")
root=$(build mount "$container")
mkdir -p "$root"/{data,out,work,proc,dev}
mkdir -p "$folder"/{data,out,work}
chown "$UNKNOWN:$UNKNOWN" "$folder"/{data,out,work}
build inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" |
    sed '/^$/d' > "$folder/environment"
mapfile -t environment < "$folder/environment"
# shellcheck disable=SC2016  # the inner shell expands these
inside() {
    unshare --mount --net --pid --fork -- bash -euc '
        root=$1 folder=$2 user=$3 data=$4; shift 4
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        for name in out work; do mount --bind "$folder/$name" "$root/$name"; done
        mount --bind "$folder/data" "$root/data"
        [ "$data" = rw ] || mount -o remount,bind,ro "$root/data"
        ! touch "$root/opt/x" 2> /dev/null || { echo "the root can be written" >&2; exit 1; }
        exec chroot --userspec="$user:$user" --groups= "$root" env -i "$@"
    ' inside "$root" "$folder" "$UNKNOWN" "$@"
}
python=/opt/harmonizer/bin/python
app=/opt/harmonizer/bin/harmonizer
inside rw "${environment[@]}" $python -m harmonizer.phantom /data/study --subjects 1 --scanners 2 \
    --voxel-mm 4 --seed 3
started=$SECONDS
inside ro "${environment[@]}" $app /data/study /out participant group -w /work --sloppy \
    --target birch
echo "harmonized in $((SECONDS - started)) s"
test -s "$folder/out/group.html"
grep -q '"Type": "docker"' "$folder/out/dataset_description.json"
build umount "$container" > /dev/null
build images --format '{{.Name}}:{{.Tag}} {{.Size}}'
