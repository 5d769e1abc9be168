"""What is learned: torch modules and grounding backends, without files, flags or schedulers."""
