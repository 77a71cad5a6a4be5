"""The store on a local S3 server, over real HTTP."""

import http.server
import socket
import threading
from functools import partialmethod

import boto3
import pytest
import torch

from suptickets_ray import Ticket
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket_store import TicketStore

BUCKET = "bucket"


@pytest.fixture
def client(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    yield client
    boto3.resource("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1").Bucket(BUCKET).objects.delete()


@pytest.fixture
def store(s3_server, client):
    return RunStore(f"s3://{BUCKET}/runs/digits?endpoint_override={s3_server}&scheme=http&region=us-east-1")


def ticket(value):
    mask = torch.arange(6).view(2, 3) % 2 == 0
    return Ticket({"w": torch.full((2, 3), value) * mask, "b": torch.ones(2)}, {"w": mask}, {"value": value})


def names(client):
    return sorted(item["Key"] for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []))


def test_tickets_are_whole_objects_under_the_names_of_the_contract(store, client):
    tickets = TicketStore(store)
    assert tickets.list() == []
    tickets.put(ticket(1.0), 0, 2)
    tickets.put(ticket(2.0), 11, 0)
    assert tickets.list() == [(0, 2), (11, 0)]
    assert tickets.get(11, 0).digest == ticket(2.0).digest
    assert tickets.get(11, 0).provenance == {"value": 2.0}
    files = [name for name in names(client) if not name.endswith("/")]
    assert files == [
        f"runs/digits/tickets/chain-{chain:03d}/cycle-{cycle:03d}.arrow" for chain, cycle in ((0, 2), (11, 0))
    ]


def test_a_recipe_that_lies_there_is_read_by_its_uri(store, s3_server):
    from suptickets_ray import load_config
    from suptickets_ray.recipes.load import to_yaml

    written = load_config(None, ["train.lr=0.07"])
    store.write("best.yaml", to_yaml(written).encode())
    query = f"endpoint_override={s3_server}&scheme=http&region=us-east-1"
    assert load_config(f"s3://{BUCKET}/runs/digits/best.yaml?{query}") == written
    with pytest.raises(ValueError, match=r"the recipe 's3://bucket/none\.yaml.*must be readable"):
        load_config(f"s3://{BUCKET}/none.yaml?{query}")
    store.write("built.yaml", b"base: digits")
    with pytest.raises(ValueError, match="must have no base; got base: 'digits'"):
        load_config(f"s3://{BUCKET}/runs/digits/built.yaml?{query}")


def test_a_ticket_of_the_same_key_is_replaced(store):
    tickets = TicketStore(store)
    tickets.put(ticket(1.0), 0, 0)
    tickets.put(ticket(3.0), 0, 0)
    assert tickets.get(0, 0).digest == ticket(3.0).digest


def test_a_damaged_object_is_found(store, client):
    tickets = TicketStore(store)
    tickets.put(ticket(1.0), 0, 0)
    tickets.put(ticket(1.0), 0, 1)
    key = "runs/digits/tickets/chain-000/cycle-001.arrow"
    whole = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    client.put_object(Bucket=BUCKET, Key=key, Body=whole[:-20])
    assert list(tickets.verify()) == [(0, 1)]
    assert "cycle-001.arrow" in tickets.verify()[0, 1]
    assert tickets.get(0, 0).digest == ticket(1.0).digest


def test_what_is_missing_and_what_was_left_half_written(store, client):
    with pytest.raises(FileNotFoundError):
        TicketStore(store).get(0, 0)
    store.write("a/file", b"content")
    client.put_object(Bucket=BUCKET, Key="runs/digits/a/file.123.tmp", Body=b"half")
    assert store.list("a") == ["a/file"]
    store.remove_temporaries()
    assert not any(name.endswith(".tmp") for name in names(client))
    assert store.read("a/file") == b"content"
    store.remove_folder("a")
    assert not store.exists("a/file")


class Forbidding(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(403)
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


@pytest.fixture(params=["closed", "silent", "forbidding", "no bucket"])
def unusable(request, s3_server):
    """HOST:PORT of a server on which no run can be kept, and the bucket to ask it for."""
    if request.param == "no bucket":
        yield s3_server, "nowhere"
        return
    if request.param == "forbidding":
        with http.server.HTTPServer(("127.0.0.1", 0), Forbidding) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"127.0.0.1:{server.server_port}", BUCKET
            server.shutdown()
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if request.param == "silent":
            taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}", BUCKET


def test_a_storage_that_cannot_be_used_is_refused_within_seconds(unusable):
    server, bucket = unusable
    store = RunStore(f"s3://{bucket}/runs/a?endpoint_override={server}&scheme=http&region=us-east-1")
    with pytest.raises(
        ValueError, match="storage must be an object store that can be written; got: .*Check the address"
    ):
        store.check(writes=True, seconds=3)


def test_a_storage_that_can_be_used_is_left_as_it_is(store, client):
    store.check(writes=True)
    assert not [name for name in names(client) if not name.endswith("/")]


@pytest.mark.parametrize(
    "command",
    [["evaluate"], ["export", "--format", "csr"], ["superpose"], ["report"], ["train"], ["tune"]],
    ids="".join,
)
def test_every_command_refuses_a_storage_that_does_not_answer(command, monkeypatch, capsys):
    from suptickets_ray.cli import main

    monkeypatch.setattr(RunStore, "check", partialmethod(RunStore.check, seconds=0.5))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        uri = f"s3://key:secret@bucket/x.yaml?endpoint_override={address}&scheme=http&region=us-east-1"
        assert main([command[0], uri, *command[1:]]) == 2
    assert "no answer within 0.5 s" in " ".join(capsys.readouterr().err.split())
