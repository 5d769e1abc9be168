"""The `hyco` command: the verbs of `pipeline` and those that need Prefect, which is imported only when one of them runs."""
