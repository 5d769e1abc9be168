"""The `hyco` command without Prefect: each verb calls the plain function that the flow of the same name calls.

`flows/__main__.py` adds the verbs that need Prefect and is what the installed `hyco` runs;
`python -m pipeline` is this file alone, for machines where Prefect is not installed.
"""

import pipeline.cli  # noqa: F401  registers the verbs
from pipeline.cli.app import app, run_app


def main() -> None:
    """Entry point of `python -m pipeline`."""
    run_app(app)


if __name__ == "__main__":
    main()
