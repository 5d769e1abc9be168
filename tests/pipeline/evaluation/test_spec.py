"""EvaluationSpec: what names an evaluation in the registry."""

from hyco.pipeline.config import digest
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.storage.home import Home
from tests.factories.training import make_home


def test_stored_answers_keep_their_name(tmp_path):
    """The registry of an earlier Hyco has folders named by bytes, taxonomy and configuration, and by nothing else."""
    home, taxonomy = Home(tmp_path / "home"), tmp_path / "taxonomy.json"
    version = make_home(tmp_path / "home")
    taxonomy.write_text("{}")
    spec = EvaluationSpec(
        version=version, taxonomy=str(taxonomy), config=AssessConfig(draws=100, device="cpu")
    )
    asked = [shard.sha256 for shard in home.versions.load(version).shards.get("val", [])]
    of_braces = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of {}
    known = {"asked": asked, "taxonomy": of_braces, "config": digest(AssessConfig(draws=100))}
    assert spec.digest(home) == digest(known)
    assert spec.replace(suite="all", data="sets").digest(home) != spec.digest(home)
    assert EvaluationSpec(config=AssessConfig(draws=100)).digest(home) != spec.digest(home)
