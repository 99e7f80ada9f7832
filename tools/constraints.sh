#!/usr/bin/env bash
# Write constraints.txt anew: the current releases that fit setup.cfg, one file for Python 3.10 to
# 3.13. PyTorch stays where it is unless TORCH says otherwise: TORCH=2.14.0 tools/constraints.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

TORCH=${TORCH:-$(sed -n 's/^torch==//p' constraints.txt)}
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet uv
echo "torch==$TORCH" > "$scratch/pins.txt"
"$scratch/venv/bin/uv" pip compile setup.cfg --extra test --extra doc --universal --python-version 3.10 \
    --no-header --no-annotate --quiet -c "$scratch/pins.txt" -o "$scratch/constraints.txt"
{
    sed -n '/^#/p' constraints.txt
    grep -v "sys_platform == 'win32'$" "$scratch/constraints.txt"
} > "$scratch/with_header.txt"
cp "$scratch/with_header.txt" constraints.txt
