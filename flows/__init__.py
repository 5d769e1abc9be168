"""When and where the work runs: Prefect lives here and nowhere else."""
