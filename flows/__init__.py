"""When and where the work runs: Prefect lives here and nowhere else."""

if not __name__.startswith("hyco."):
    from hyco.old_names import answer

    answer(__name__)
