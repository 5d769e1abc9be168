"""The pages on which a person looks at what was mined: paging, filters, boxes before the thresholds, and marks."""

import errno
import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from hyco.pipeline.cli.serve import only_here
from hyco.pipeline.packing.pack import pack
from hyco.pipeline.ui import review
from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.marks import box_name
from hyco.storage.sample import Part, TrainingSample
from hyco.storage.versions import Version
from tests.factories.training import sample
from tests.pipeline.packing.test_pack import SIZE, Mined, made, packing_config, samples_of  # noqa: F401
from tests.pipeline.ui.test_serve import home as tiny  # noqa: F401

SAME = {"sec-fetch-site": "same-origin"}
CONFIG = packing_config(image_size=SIZE, shard_size=3)


def client_of(home: str | Path, writable: bool = True) -> TestClient:
    return TestClient(
        create_app(Home(home), writable=writable), base_url="http://localhost", follow_redirects=False
    )


@pytest.fixture
def mined(made: tuple[Mined, str]) -> tuple[TestClient, str, Version, list[TrainingSample]]:  # noqa: F811
    config, home = made
    version = pack(config, CONFIG, Home(home))
    return client_of(home), home, version, samples_of(home, version)


def keys_of(page: str) -> list[str]:
    return re.findall(r'<input type="hidden" name="key" value="(\w+)">', page)


def link(page: str, rel: str) -> str | None:
    found = re.search(rf'rel="{rel}" href="([^"]+)"', page)
    return found[1].replace("&amp;", "&") if found else None


def shown(client: TestClient, version: Version, **asked: str) -> str:
    answer = client.get(f"/versions/{version.name}/samples?{urlencode(asked)}")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_pages_show_all_samples_in_both_directions(mined, monkeypatch) -> None:
    client, _, version, samples = mined
    monkeypatch.setattr(review, "SAMPLES", 4)
    keys, query = [], ""
    pages = []
    while query is not None:
        page = client.get(f"/versions/{version.name}/samples{query}").text
        pages.append(keys_of(page))
        keys += pages[-1]
        query = link(page, "next")
    assert keys == [one.key for one in samples] and [len(one) for one in pages] == [4, 4, 2]
    page = shown(client, version, at="8")
    for expected in (pages[1], pages[0]):
        page = client.get(f"/versions/{version.name}/samples{link(page, 'prev')}").text
        assert keys_of(page) == expected
    assert link(page, "prev") is None and "All samples" in client.get(f"/versions/{version.name}").text


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ({"phrase": "RED sq"}, 10),
        ({"phrase": "green"}, 0),
        ({"low": "0.95"}, 0),
        ({"phrase": "blue", "low": "0.45", "high": "0.55"}, 10),
        ({"phrase": "blue", "low": "0.6"}, 0),
        ({"rule": "expression"}, 0),
        ({"rule": "chunk", "origin": "detector"}, 10),
        ({"origin": "source"}, 0),
        ({"key": "000000007"}, 1),
        ({"marked": "1"}, 0),
        ({"split": "val"}, 0),
    ],
)
def test_filters(mined, asked: dict[str, str], number: int) -> None:
    client, _, version, _ = mined
    page = shown(client, version, **asked)
    assert len(keys_of(page)) == number
    assert ("No sample here fits" in page) == (number == 0)


def test_a_filter_looks_at_a_stated_number_of_samples_and_goes_on(mined, monkeypatch) -> None:
    client, _, version, samples = mined
    monkeypatch.setattr(review, "MOST", 4)
    page = shown(client, version, key=samples[9].key)
    seen = [keys_of(page)]
    while (query := link(page, "next")) is not None:
        page = client.get(f"/versions/{version.name}/samples{query}").text
        seen.append(keys_of(page))
    assert seen == [[], [], [samples[9].key]] and "looks at 4 samples at most" in page


@pytest.mark.parametrize("asked", [{"at": "x"}, {"before": "1.5"}, {"low": "much"}, {"split": "test"}])
def test_a_query_that_cannot_be_read_is_an_error_by_name(mined, asked: dict[str, str]) -> None:
    client, _, version, _ = mined
    answer = client.get(f"/versions/{version.name}/samples?{urlencode(asked)}")
    assert answer.status_code == 404 and next(iter(asked)) in answer.text


def test_boxes_before_the_thresholds(mined) -> None:
    client, _, version, _ = mined
    page = shown(client, version, key="000000007", boxes="all")
    assert page.count('<rect class="other') == 1, "four candidates, of which three were accepted"
    assert "1 other boxes before the thresholds" in page and "below the threshold" in page
    assert "<details open>" in page and "<details open>" not in shown(client, version)


def test_boxes_before_the_thresholds_of_a_version_whose_units_were_packed_again(made) -> None:  # noqa: F811
    config, home = made
    old = pack(config, CONFIG, Home(home))
    Home(home).marks.put(samples_of(home, old)[0].key)
    new = pack(config, CONFIG, Home(home))
    client = client_of(home)
    for version in (old, new):
        assert "The detections of this image are not in the home" not in shown(client, version)


def post(client: TestClient, headers: dict[str, str] = SAME, **form: str):
    return client.post("/marks", content=urlencode(form), headers=headers)


def test_a_box_and_an_image_are_marked_from_the_page_and_packed_without(mined, made) -> None:  # noqa: F811
    client, home, version, samples = mined
    page = shown(client, version)
    back = re.findall(r'name="back" value="([^"]+)"', page)[1].replace("&amp;", "&")
    value = re.findall(r'<button name="part" value="([^"]+)"', page)[3]  # the first part of the second image
    answer = post(client, key=samples[1].key, part=value, version=version.name, back=back)
    assert answer.status_code == 303 and answer.headers["location"] == back == (
        f"/versions/{version.name}/samples?at=0#s1"
    )
    assert post(client, key=samples[1].key, part=value, version=version.name, back=back).status_code == 303
    post(client, key=samples[0].key, sample="1", version=version.name)
    name = box_name(samples[1].key, samples[1].parts[0].phrase, samples[1].parts[0].box)
    assert Home(home).marks.names() == {name, samples[0].key}
    page = shown(client, version, marked="1")
    assert keys_of(page) == [samples[0].key, samples[1].key]
    assert f'<button name="undo" value="{name}"' in page and f'value="{samples[0].key}">take back' in page
    listed = client.get("/marks").text
    assert "2 images and boxes" in listed and samples[1].parts[0].phrase in listed
    config, _ = made
    left = samples_of(home, pack(config, CONFIG, Home(home)))
    assert samples[0].key not in {one.key for one in left}
    assert len(next(one for one in left if one.key == samples[1].key).parts) == len(samples[1].parts) - 1
    assert post(client, undo=name).headers["location"] == "/marks"
    assert Home(home).marks.names() == {samples[0].key}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"origin": "http://localhost"}, 303),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        (SAME, 303),
    ],
)
def test_only_pages_of_this_server_mark(tiny: Path, headers: dict[str, str], status: int) -> None:  # noqa: F811
    assert post(client_of(tiny), headers, key="k0", sample="1").status_code == status
    assert Home(tiny).marks.names() == ({"k0"} if status == 303 else set())


def test_another_host_marks_nothing(tiny: Path) -> None:  # noqa: F811
    answer = post(client_of(tiny), {**SAME, "host": "evil.example"}, key="k0", sample="1")
    assert answer.status_code == 421 and not Home(tiny).marks.names()


def test_read_only_pages_have_no_buttons_and_refuse(tiny: Path) -> None:  # noqa: F811
    client = client_of(tiny, writable=False)
    assert "<button name=" not in client.get("/versions/latest/samples").text
    answer = post(client, key="k0", sample="1")
    assert answer.status_code == 403 and "hyco serve --marks" in answer.text
    assert not Home(tiny).marks.names()


@pytest.mark.parametrize(
    ("host", "address", "allowed", "writable"),
    [
        ("127.0.0.1", "", (), True),
        ("localhost", "", (), True),
        ("0.0.0.0", "", (), False),
        ("127.0.0.1", "https://pages.example.org", (), False),
        ("127.0.0.1", "", ("pages.example.org",), False),
    ],
)
def test_marks_are_taken_by_default_only_where_nobody_else_sees_the_pages(
    host: str, address: str, allowed: tuple[str, ...], writable: bool
) -> None:
    assert only_here(host, address, allowed) is writable


def test_a_home_that_cannot_be_written_to_says_so(tiny: Path, monkeypatch) -> None:  # noqa: F811
    def refuse(*_: object) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("hyco.storage.store.Store.create", refuse)
    answer = post(client_of(tiny), key="k0", sample="1")
    assert answer.status_code == 403 and "cannot be written to" in answer.text


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"key": "k0"},
        {"key": "../../x", "sample": "1"},
        {"key": "k0", "part": "0 0 1 x a dog"},
        {"key": "k0", "part": "0 0 1 nan a dog"},
        {"key": "k0", "part": "0 0 2 1 a dog"},
        {"key": "k0", "part": "0 0 1 1 "},
        {"undo": "../versions/latest"},
    ],
)
def test_a_form_that_names_nothing_is_refused(tiny: Path, form: dict[str, str]) -> None:  # noqa: F811
    assert post(client_of(tiny), SAME, **form).status_code == 400
    assert not Home(tiny).marks.names()


def test_long_forms_and_foreign_places_to_return_to_are_refused(tiny: Path) -> None:  # noqa: F811
    client = client_of(tiny)
    assert post(client, key="k0", sample="1", back="x" * 20_000).status_code == 413
    for back in ("https://evil.example/", "//evil.example", "/versions\\evil", ""):
        assert post(client, key="k0", sample="1", back=back).headers["location"] == "/marks"


def test_texts_of_data_are_escaped(tiny: Path) -> None:  # noqa: F811
    page = client_of(tiny).get("/versions/latest/samples").text
    assert "<script>" not in page and "<b>red</b>" not in page and "a &lt;b&gt;red&lt;/b&gt; square" in page
    assert "not packed" in page or "next <code>hyco pack" in page


def test_failures_are_paged_and_filtered(mined, monkeypatch) -> None:
    from hyco.storage.detections import write_failures
    from hyco.storage.sample import Failure

    client, home, version, _ = mined
    results = Home(home).detections(version.digests["mine"])
    for place, unit in enumerate(version.units):
        rows = [Failure(f"k{place}{n}", "ground", "odd" if n % 2 else "<even>", "why") for n in range(3)]
        table = results.store.commit(
            results.objects, ".parquet", lambda file, rows=rows: write_failures(file, rows)
        )
        record = results.record(unit)
        assert record is not None
        results.replace(unit, {**record, "failures": {"path": table.path}, "failed": 3})
    monkeypatch.setattr(review, "FAILURES", 4)
    page = client.get(f"/versions/{version.name}/failures").text
    assert page.count("<code>k") == 4 and "&lt;even&gt;" in page and "<even>" not in page
    page = client.get(f"/versions/{version.name}/failures{link(page, 'next')}").text
    assert page.count("<code>k") == 2 and link(page, "next") is None
    assert client.get(f"/versions/{version.name}/failures?code=odd").text.count("<code>k") == 2


def test_part_filters_fit_one_box_and_unknown_scores_fit_no_range() -> None:
    part = Part(sample(0).image, "a dog", score=0.5, rule="chunk")
    held = TrainingSample(
        "k", b"", ("c",), (part, Part(b"", "a cat", rule="expression")), {"source_key": "name"}
    )
    assert review.Filter(phrase="cat", rule="expression").keeps(held, set())
    assert not review.Filter(phrase="cat", rule="chunk").keeps(held, set())
    assert not review.Filter(phrase="cat", low=0).keeps(held, set())
    assert review.Filter(key="name").keeps(held, set()) and not review.Filter(key="nam").keeps(held, set())
