#!/usr/bin/env bash
# Ray on one node of a job, until the job is over. Started by job.sh through srun: node.sh FOLDER NODE PEER
set -euo pipefail

# shellcheck source=cluster/slurm/ray.sh
. "$(dirname "${BASH_SOURCE[0]}")/ray.sh"
serve "$@"
