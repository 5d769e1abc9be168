"""The `hyco` command without Prefect: each command calls the same plain function as the flow of its name.

`flows/__main__.py` adds the commands that need Prefect and is the installed `hyco`;
`python -m hyco.pipeline` is this file only, for machines where Prefect is not installed.
"""

import hyco.pipeline.cli  # noqa: F401  registers the commands
from hyco.pipeline.cli.app import app, run_app


def main() -> None:
    """Entry point of `python -m hyco.pipeline`."""
    run_app(app)


if __name__ == "__main__":
    main()
