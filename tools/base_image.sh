#!/usr/bin/env bash
# Print the base image of the Dockerfile with the digest that its tag has now, for BASE_IMAGE:
#
#   docker build --build-arg BASE_IMAGE="$(tools/base_image.sh)" .
#
# The digest is looked up in the registry, so this needs docker with buildx and a network. It ends with
# an error rather than print a name without a digest.
set -euo pipefail
cd "$(dirname "$0")/.."
image=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)
digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$image: no digest, but '$digest'" >&2; exit 65; }
echo "$image@$digest"
