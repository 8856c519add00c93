#!/bin/bash
# Training by torchrun on several nodes: sbatch cluster/slurm/train.sh mnist runs/digits
# Killed or out of time, the job is queued again and goes on from its newest checkpoint with the same bits.
#SBATCH --job-name=thalweg-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

data=${1:?data, such as mnist or rows.parquet}
run=${2:?folder of the run, on a disk that all nodes see}
shift 2

processes=${SLURM_GPUS_ON_NODE:-1}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / processes))

# Two minutes before its time is over Slurm sends TERM to this shell: the training saves, and the job is queued again.
requeue() {
  kill -TERM "$step" 2>/dev/null || true
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue TERM

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$processes" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head:29500" \
  --rdzv-id "$SLURM_JOB_ID" \
  -m thalweg train "$data" -o "$run" --resume "$@" &
step=$!
wait "$step"
