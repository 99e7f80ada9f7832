#!/usr/bin/env bash
# Submit the four jobs, each after the one before: BIDS=... OUT=... IMAGE=... docs/slurm/submit.sh
# FLAGS="--site-from ses --backend disarm" gives all four more flags.
#
# A participant who fails must not stop the others, so the later jobs wait for the end of the arrays
# (afterany) and only for the success of the single jobs (afterok).
set -euo pipefail
: "${BIDS:?the BIDS dataset}" "${OUT:?the output folder}" "${IMAGE:?harmonizer.sif}"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$OUT"
export BIDS OUT IMAGE FLAGS=${FLAGS:-} LABELS=${LABELS:-$OUT/../$(basename "$OUT")-labels.txt}

find "$BIDS" -maxdepth 1 -type d -name 'sub-*' -printf '%f\n' | sed 's/^sub-//' | sort > "$LABELS"
count=$(wc -l < "$LABELS")
[ "$count" -gt 0 ] || { echo "$BIDS: no sub-* folder" >&2; exit 65; }

preprocess=$(sbatch --parsable --array="1-$count" "$here/1-preprocess.sbatch")
fit=$(sbatch --parsable --dependency="afterany:$preprocess" "$here/2-fit.sbatch")
harmonize=$(sbatch --parsable --array="1-$count" --dependency="afterok:$fit" "$here/3-harmonize.sbatch")
evaluate=$(sbatch --parsable --dependency="afterany:$harmonize" "$here/4-evaluate.sbatch")
echo "preprocess $preprocess, fit $fit, harmonize $harmonize, evaluate $evaluate"
