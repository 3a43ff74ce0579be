#!/usr/bin/env bash
#SBATCH --job-name=dsv32-verify
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=02:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=dsv32-%j.log
#
# Dumps a fork and judges it on one node: sbatch integrations/slurm.sh CKPT CASE [dump options]
#   DSV32    folder of this project, built (default: where sbatch was called)
#   FORK     the fork's environment, with bin/python (default: $DSV32/.venv-golden)
#   LOCAL    a local disk for the checkpoint (default: $SLURM_TMPDIR or $TMPDIR or /tmp)
# Exit code: the judge's, or that of the first step that failed.
set -euo pipefail

checkpoint=${1:?usage: sbatch slurm.sh CKPT CASE [dump options]}
case_name=${2:?usage: sbatch slurm.sh CKPT CASE [dump options]}
shift 2
root=${DSV32:-${SLURM_SUBMIT_DIR:-$PWD}}
fork=${FORK:-$root/.venv-golden}
job=${SLURM_JOB_ID:-local}
local_disk=$(mktemp -d "${LOCAL:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/dsv32-$job-XXXXXX")
trap 'rm -rf "$local_disk"' EXIT
trap 'echo "slurm.sh: time is up" >&2; exit 143' TERM

ulimit -n "$(ulimit -Hn)"
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-$(nproc)}

# A network volume is read once; the judge and the fork read the copy.
cp -r "$checkpoint" "$local_disk/ckpt"
"$root/build/dsv32-verify" doctor --config tiny --weights "$local_disk/ckpt" --python "$fork/bin/python"

trace=$local_disk/fork.safetensors
# In the background, so that the signal before the end of the time is heard.
"$fork/bin/python" "$root/golden/dump" --checkpoint "$local_disk/ckpt" --case "$case_name" \
  --mode backward --out "$trace" "$@" &
wait $!
"$root/build/dsv32-verify" --candidate "$trace" --out "report-$job" &
wait $!
