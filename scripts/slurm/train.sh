#!/bin/bash
# A training on SLURM that goes on in the same folder, however often it is stopped:
#   sbatch scripts/slurm/train.sh model=faster_rcnn_fpn data=coco data.batch_size=64 trainer.precision=bf16-mixed
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=2:00:00 scripts/slurm/train.sh ...
# Submit it from the folder in which `python -m cvexp.train` works, in the environment that has cvexp.
#SBATCH --job-name=cvexp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -uo pipefail

folder=${CVEXP_RUN:-runs/slurm-$SLURM_JOB_ID} # the number stays the same when a job is queued again
words=(trainer=slurm "hydra.run.dir='$folder'")
if [[ -e $folder/checkpoints/last.ckpt ]]; then words+=("resume='$folder'"); fi

again=""
stop() { # two minutes before the end of the job's time: the processes save and end
  again=yes
  kill -TERM "$step"
}
trap stop USR1

# One process that fails ends them all; in the background, so that the signal is heard at once.
srun --kill-on-bad-exit=1 python -m cvexp.train "${words[@]}" "$@" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # the signal has interrupted the wait
  wait "$step"
  code=$?
done

if [[ $again && $code -ne 0 ]]; then
  echo "the time is over; job $SLURM_JOB_ID is queued again and will go on in $folder"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
