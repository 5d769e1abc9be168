"""The pages of detections that no version was made from: paging, filters, images of the source, and marks."""

import re
from html import unescape
from urllib.parse import urlencode

import pytest

from hyco.pipeline.config import digest
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing.pack import pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.ui import mined as pages
from hyco.storage.home import Home, UnitResults
from hyco.storage.versions import Versions
from tests.factories.mining import ColourDetector, samples, write_tar
from tests.pipeline.packing.test_verified import packing
from tests.pipeline.ui.test_review import SAME, client_of, keys_of, link


@pytest.fixture
def mined(monkeypatch, tmp_path):
    monkeypatch.setattr(ground, "open_detector", lambda *args, **options: ColourDetector())
    monkeypatch.setattr(ground, "grounder_digest", lambda spec: ColourDetector.digest)
    mining._open_detector.cache_clear()
    for number in (0, 5):
        write_tar(tmp_path / "source" / f"0000{number}.tar", samples(5, start=number))
    config, home = MineConfig(source=str(tmp_path / "source"), grounder="onnx:first"), Home(tmp_path / "home")
    mine_all(config, home, InProcess())
    yield client_of(home.url), config, home
    mining._open_detector.cache_clear()


def shown(client, config, **asked):
    answer = client.get(f"/detections/{digest(config)}?{urlencode(asked)}")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_pages_show_every_mined_image_in_both_directions(mined, monkeypatch):
    client, config, _ = mined
    monkeypatch.setattr(pages, "SAMPLES", 4)
    listed = client.get("/detections").text
    assert f'href="/detections/{digest(config)}"' in listed and config.source in listed and ">10<" in listed
    assert "/detections" in client.get("/").text
    found, query, page = [], "", ""
    while query is not None:
        page = client.get(f"/detections/{digest(config)}{query}").text
        found.append(keys_of(page))
        query = link(page, "next")
    assert [len(keys) for keys in found] == [4, 4, 2] and len({key for keys in found for key in keys}) == 10
    page = client.get(f"/detections/{digest(config)}{link(page, 'prev')}").text
    assert keys_of(page) == found[1]
    short = client.get(f"/detections/{digest(config)[:6]}").text
    assert keys_of(short) == found[0]
    assert client.get("/detections/0nothing").status_code == 404


def test_filters_see_boxes_below_every_threshold(mined):
    client, config, _ = mined
    everything = shown(client, config)
    assert len(keys_of(everything)) == 10 and everything.count("<rect") >= 10
    red = keys_of(shown(client, config, phrase="red"))
    assert 0 < len(red) < 10
    assert keys_of(shown(client, config, low="0.999")) == []
    assert keys_of(shown(client, config, key=red[0])) == [red[0]]
    for bad in ("high", "nan"):
        answer = client.get(f"/detections/{digest(config)}?low={bad}")
        assert answer.status_code == 404 and f"low '{bad}' is no number" in answer.text


def test_a_mark_is_honoured_by_the_packing(mined):
    client, config, home = mined
    form = re.search(
        r'name="key" value="(\w+)".*?name="part" value="([^"]+)"', shown(client, config), re.DOTALL
    )
    assert form
    key, value = form.groups()
    back = f"/detections/{digest(config)}?at=0"
    answer = client.post("/marks", data={"key": key, "part": value, "back": back}, headers=SAME)
    assert answer.status_code == 303 and answer.headers["location"] == back
    assert len(keys_of(shown(client, config, marked="1"))) == 1
    version = pack(config, packing(), home)
    assert version.counts["marked_parts"] >= 1
    assert f"/versions/{version.name}" in client.get("/detections").text


def test_images_that_are_gone_are_blank(mined):
    client, config, _ = mined
    with_images = shown(client, config)
    for file in Home(config.source).store.list():
        Home(config.source).store.delete(file)
    without = shown(client, config)
    assert keys_of(without) == keys_of(with_images)
    pictures = re.compile(r"data:image/jpeg;base64,[^\"]+")
    assert len(set(pictures.findall(with_images))) == 10 > len(set(pictures.findall(without)))


def test_a_damaged_record_or_version_costs_no_other_one(mined):
    client, config, home = mined
    version = pack(config, packing(), home)
    home.store.replace(f"versions/{version.name}.json", b"{}")
    results = home.detections(digest(config))
    path = results.path(results.units()[0])
    home.store.replace(path, b"torn")
    listed = client.get("/detections").text
    assert f"not counted: {path}: it is not JSON: run `hyco verify --repair" in unescape(listed)
    assert f'href="/detections/{digest(config)}"' in listed and ">5<" in listed
    assert version.name not in listed
    page = shown(client, config)
    assert len(keys_of(page)) == 5 and f"Left out: {path}" in page


def test_no_record_and_no_version_is_read_again(mined, monkeypatch):
    client, config, home = mined
    version = pack(config, packing(), home)
    for path in ("/detections", f"/detections/{digest(config)}"):
        client.get(path)
        with monkeypatch.context() as patch:
            patch.setattr(UnitResults, "record", None)
            patch.setattr(Versions, "load", None)
            page = client.get(path).text
        assert len(keys_of(page)) == 10 or version.name in page
