"""Messages: `hyco deploy --set notify=TYPE/NAME` makes the automations, and the block is told what happened."""

import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client

from hyco.flows.deployment.automations import TELLS
from hyco.flows.deployment.reconcile import apply, check
from hyco.flows.deployment.spec import blueprint
from hyco.flows.reporting import events
from hyco.pipeline.config import ConfigError
from hyco.storage.home import Home
from hyco.storage.shelf import Shelved
from tests.flows.deployment.test_reconcile import config


@pytest.fixture
def received():
    """What a local webhook is sent, and a block `custom-webhook/team` with its address."""
    bodies = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=server.serve_forever, daemon=True).start()
    CustomWebhookNotificationBlock(
        name="team",
        url=f"http://127.0.0.1:{server.server_port}",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
    ).save("team", overwrite=True)
    yield bodies
    server.shutdown()


def names():
    with get_client(sync_client=True) as client:
        return {
            one.name.removeprefix(TELLS) for one in client.read_automations() if one.name.startswith(TELLS)
        }


def test_the_block_is_told_once_and_the_automations_go_with_the_option(received, tmp_path):
    plan = blueprint(config(notify="custom-webhook/team"))
    apply(plan)
    assert check(plan) == [] and len(names()) == 5
    entry = Shelved("0a", "7.tar", "/data", "torn", "2026-11-29T20:00:00+00:00")
    for _ in range(2):
        events.away(entry, Home(str(tmp_path)))
        events.given_up("v-1", "5 attempts have failed", Home(str(tmp_path)))
    events.quarantined("v-2", "min_images 3, limit 10", Home(str(tmp_path)))
    events.flush()
    until = time.monotonic() + 60
    while len(received) < 3 and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(1)
    assert sorted((one["subject"], one["body"].splitlines()[-1]) for one in received) == [
        ("Hyco: a quarantined dataset version", "v-2: min_images 3, limit 10"),
        ("Hyco: a shard that is set aside", f"7.tar: {entry}"),
        ("Hyco: a training that is given up", "v-1: 5 attempts have failed"),
    ]
    without = blueprint(config())
    assert "deleted automation 'hyco: tell of a refused model'" in apply(without)
    assert names() == set() and check(without) == []


def test_a_block_that_is_not_there_is_named_with_those_that_are(received):
    with pytest.raises(ValueError, match=r"no block slack-webhook/team; it has .*custom-webhook/team"):
        check(blueprint(config(notify="slack-webhook/team")))
    with pytest.raises(ConfigError, match="'team' is not TYPE/NAME of a block"):
        config(notify="team")
