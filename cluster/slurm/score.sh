#!/bin/bash
# Many files scored by Ray on several nodes: sbatch cluster/slurm/score.sh runs/pumps '/data/rows/*.parquet' /data/scores
# Killed or out of time: give the same command. Parts that are there are kept.
#SBATCH --job-name=thalweg-score
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

run=${1:?folder of the detector}
data=${2:?files, folder or quoted pattern}
out=${3:?folder for the scores, on a disk that all nodes see}
shift 3

# One token for all nodes of this job; it is not written down.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=6379

srun --nodes=1 --ntasks=1 --nodelist="$head" --export=ALL \
  ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \
  --include-dashboard=false --disable-usage-stats --block &
sleep 20
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" --export=ALL \
    ray start --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats --block &
  sleep 20
fi

thalweg detect score "$run" "$data" -o "$out" --engine ray --address "$address:$port" "$@"
