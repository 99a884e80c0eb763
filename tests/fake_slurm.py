"""A Slurm of four shell scripts: enough for submitit to run an array of jobs here, and to requeue one of them."""

from pathlib import Path

_SCRIPTS = {
    "sbatch": r"""
        last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$1")
        for task in $(seq 0 "${last:-0}"); do (
            export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((7 + task)) SLURM_JOB_NAME=fake
            export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
            while bash "$1"; [ -e "$0-7_$task" ]; do mv "$0-7_$task" "$0-again-7_$task"; done
        ) > "$0-$task.log" 2>&1 & done
        cp "$1" "$0-script"
        echo "Submitted batch job 7"
    """,
    "srun": """
        while [[ $1 == -* ]]; do [ "$1" = --output ] && shift; shift; done
        exec "$@"
    """,
    "scontrol": '[ "$1" = requeue ] && touch "$(dirname "$0")/sbatch-$2"',
    "sacct": r"""printf 'JobID|State|NodeList\n7_[0-9]|RUNNING|here\n'""",
}


def install(folder: Path) -> None:
    """Writes the commands into `folder`, which is to be put first on the path.

    sbatch leaves what it was given in sbatch-script, and a file sbatch-again-7_<task> for a task that was requeued.
    """
    folder.mkdir()
    for name, script in _SCRIPTS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
