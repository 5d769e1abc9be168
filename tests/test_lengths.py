"""No file is too long to be read in one go."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flows", "pipeline", "models", "storage", "demo", "docs", "docker", "findings", "tests")
CODE = {".py", ".sh", ".js", ".css", ".html", ".j2"}


def test_no_file_of_code_is_over_500_lines() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in CODE]
    assert len(files) > 300
    long = {str(path.relative_to(ROOT)): lines for path in files if (lines := _lines(path)) > 500}
    assert not long, f"split by subject: {long}"


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
