#!/usr/bin/env bash
# Submit the four jobs, each after the one before: BIDS=... OUT=... IMAGE=... docs/slurm/submit.sh
# Time and memory are computed from the number of scans. May be set as well:
#   FLAGS        more flags for all four jobs, such as "--site-from ses --modalities T1w FLAIR"
#   WORK         work folder that stays, for trainings, samplings and the evaluation ($OUT-work)
#   LOGS         folder of the log files ($OUT/logs/slurm)
#   THROTTLE     array tasks that run at once (50)
#   MAX_TASKS    tasks of an array; with more participants a task does several (1000)
#   CPUS         processors of fit and evaluation (4)
#   TIME_FACTOR  all times are multiplied by it (1)
# sbatch also takes SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_QOS.
#
# A participant who fails must not stop the others, so the later jobs wait for the end of the arrays
# (afterany) and only for the success of the single jobs (afterok). After a time limit, submit again:
# what is finished is reused.
set -euo pipefail
: "${BIDS:?the BIDS dataset}" "${OUT:?the output folder}" "${IMAGE:?harmonizer.sif}"
here=$(cd "$(dirname "$0")" && pwd)
export BIDS OUT IMAGE FLAGS=${FLAGS:-} WORK=${WORK:-$OUT-work}
export LABELS=${LABELS:-$WORK/labels-$(date +%Y%m%dT%H%M%S).txt}
logs=${LOGS:-$OUT/logs/slurm} throttle=${THROTTLE:-50} max_tasks=${MAX_TASKS:-1000}
cpus=${CPUS:-4} factor=${TIME_FACTOR:-1}
mkdir -p "$OUT" "$WORK" "$logs"

# The values of one flag among FLAGS, else the default.
values_of() {
    local flag=$1 values="" taking=0 word words
    read -ra words <<< "$FLAGS"
    for word in ${words[@]+"${words[@]}"}; do
        case $word in
            "$flag") taking=1 ;;
            "$flag="*) taking=0 values+=" ${word#*=}" ;;
            -*) taking=0 ;;
            *) [ "$taking" = 0 ] || values+=" $word" ;;
        esac
    done
    echo "${values:-$2}"
}

read -ra modalities <<< "$(values_of --modalities T1w)"
names=()
for modality in "${modalities[@]}"; do
    names+=(-o -name "*_$modality.nii" -o -name "*_$modality.nii.gz")
done
counts=$(cd "$BIDS" &&
    find . \( -path ./derivatives -o -path ./sourcedata -o -path './.*' \) -prune \
        -o -path './sub-*/anat/*' \( "${names[@]:1}" \) -print | cut -d/ -f2 | sort | uniq -c)
[ -n "$counts" ] || { echo "$BIDS: no image *_${modalities[*]}.nii.gz in sub-*/anat" >&2; exit 65; }
participants=$(wc -l <<< "$counts")
scans=$(awk '{sum += $1} END {print sum}' <<< "$counts")
most=$(awk '$1 > most {most = $1} END {print most}' <<< "$counts")
per_task=$(((participants + max_tasks - 1) / max_tasks))
awk '{sub(/^sub-/, "", $2); print $2}' <<< "$counts" | xargs -n "$per_task" > "$LABELS"
array="1-$(wc -l < "$LABELS")%$throttle"

# Minutes, about twice what docs/benchmarks.md measures, and MB.
preprocess_time=$((factor * (30 + 20 * most * per_task)))
fit_time=$((factor * (60 + $(values_of --max-minutes 180 | cut -d. -f1) + scans / 5)))
harmonize_time=$((factor * (30 + 15 * most * per_task)))
evaluate_time=$((factor * (60 + scans * 5 / (4 * cpus))))
group_memory=$((2000 + 3000 * cpus + 2 * scans))

submit() { sbatch --parsable "$@" | cut -d';' -f1; }
preprocess=$(submit --array="$array" --time="$preprocess_time" --output="$logs/%x_%A_%a.out" \
    "$here/1-preprocess.sbatch")
fit=$(submit --time="$fit_time" --mem="$group_memory" --cpus-per-task="$cpus" \
    --output="$logs/%x_%j.out" --dependency="afterany:$preprocess" "$here/2-fit.sbatch")
harmonize=$(submit --array="$array" --time="$harmonize_time" --output="$logs/%x_%A_%a.out" \
    --dependency="afterok:$fit" --kill-on-invalid-dep=yes "$here/3-harmonize.sbatch")
evaluate=$(submit --time="$evaluate_time" --mem="$group_memory" --cpus-per-task="$cpus" \
    --output="$logs/%x_%j.out" --dependency="afterany:$harmonize" --kill-on-invalid-dep=yes \
    "$here/4-evaluate.sbatch")
echo "$scans scans of $participants participants: preprocess $preprocess, fit $fit," \
    "harmonize $harmonize, evaluate $evaluate; logs in $logs"
