"""cluster.yaml and the KubeRay files against what Ray and KubeRay accept; nothing is started."""

import copy
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws.config import _create_default_inbound_rules

from suptickets_ray import load_config
from suptickets_ray.distributed.cluster.capacity import explorer_capacity, resource_shortfall
from suptickets_ray.recipes.files import shipped_recipes
from suptickets_ray.recipes.resolve import resolve

ROOT = Path(__file__).parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
JOB = yaml.safe_load((ROOT / "experiments/kuberay/rayjob.yaml").read_text())


def text_of(value):
    return json.dumps(value)


def test_rays_own_schema_and_checks_accept_the_cluster_file():
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    jsonschema.validate(CLUSTER, json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text()))
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"


def test_the_head_trains_nothing_and_workers_are_asked_for_by_resources_of_their_own():
    types = CLUSTER["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert all("--num-cpus=0" in command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command)
    assert set(types) == {"head", "on_demand", "spot"}
    assert types["on_demand"]["resources"] == {"on_demand": 1}
    assert types["spot"]["resources"] == {"spot": 1}
    assert types["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all(types[name]["min_workers"] == 0 for name in ("on_demand", "spot"))
    assert CLUSTER["idle_timeout_minutes"] <= 10


def test_nobody_gets_in_without_the_token_or_but_by_ssh():
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all("RAY_AUTH_MODE=token" in command for command in CLUSTER[key])
    assert "--dashboard-host=127.0.0.1" in text_of(CLUSTER["head_start_ray_commands"])
    # The rules that Ray really makes, of its own and of the file.
    rules = _create_default_inbound_rules({"sg"}, CLUSTER["provider"]["security_group"].get("IpPermissions"))
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules if rule.get("IpRanges")] == [(22, 22)]
    assert all(rule["UserIdGroupPairs"] == [{"GroupId": "sg"}] for rule in rules if not rule.get("IpRanges"))
    assert "chmod 600 ~/.ray/auth_token" in CLUSTER["setup_commands"]


def test_every_path_and_command_that_the_cluster_file_names_is_there():
    assert CLUSTER["file_mounts"]["~/suptickets_ray"] == "."
    for path in re.findall(r"~/suptickets_ray/([\w./]+)", text_of(CLUSTER["setup_commands"])):
        assert (ROOT / path).exists(), path
    assert (ROOT / "pyproject.toml").is_file()


@pytest.fixture(params=["cluster.yaml", "rayjob.yaml"])
def command(request):
    """The words of the command that a file tells one to give, or gives itself."""
    texts = {"cluster.yaml": (ROOT / "cluster.yaml").read_text(), "rayjob.yaml": JOB["spec"]["entrypoint"]}
    lines = re.sub(r"\\\n#?\s*", "", texts[request.param])
    (command,) = re.findall(r"suptickets train (.*)", lines)
    return [quoted or plain for quoted, plain in re.findall(r"'([^']*)'|(\S+)", command)]


def test_the_commands_are_recipes_that_load_and_say_where_files_and_machines_come_from(command):
    recipe, *overrides = command
    assert recipe in shipped_recipes()
    config = resolve(load_config(recipe, overrides))
    assert config.storage.startswith("s3://")
    assert config.cluster.address == "auto"
    assert config.data.download or config.data.root
    # Both files start without a worker: a run that does not wait is refused at once.
    assert config.cluster.resource_timeout_minutes >= 10


def test_the_machines_of_the_cluster_file_have_room_for_its_command(command, monkeypatch):
    """g6.2xlarge: 8 virtual CPUs and a GPU."""
    config = load_config(command[0], command[1:]).cluster
    machines = [
        {"NodeID": f"{name}-{number}", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, **own["resources"]}}
        for name, own in CLUSTER["available_node_types"].items()
        if name != "head"
        for number in range(own["max_workers"])
    ]
    head = {"NodeID": "head", "Alive": True, "Resources": {"CPU": 0.0, "node:__internal_head__": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [head, *machines])
    assert resource_shortfall(config) is None
    assert explorer_capacity(config) >= CLUSTER["available_node_types"]["spot"]["max_workers"]


def test_the_head_may_start_machines_and_has_what_that_needs():
    types = CLUSTER["available_node_types"]
    profiles = {name: own["node_config"]["IamInstanceProfile"]["Name"] for name, own in types.items()}
    assert profiles == {"head": "suptickets-head", "on_demand": "suptickets-storage", "spot": "suptickets-storage"}
    comments = " ".join(re.findall(r"^#(.*)", (ROOT / "cluster.yaml").read_text(), re.MULTILINE))
    for right in ("ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ssm:GetParameters", "iam:PassRole"):
        assert right in comments
    assert any("boto3" in command for command in CLUSTER["head_setup_commands"])


def test_every_machine_gets_a_python_that_the_project_takes():
    commands = CLUSTER["setup_commands"]
    (made,) = [command for command in commands if " venv " in command]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + re.search(r"--python (\S+)", made)[1]
    assert commands.index(made) < next(i for i, command in enumerate(commands) if "pip install" in command)


def test_ray_and_what_it_needs_are_pinned_to_what_was_tested():
    pins = dict(
        line.split("==")
        for line in (ROOT / "experiments/constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    assert pins["ray"].startswith("2.60.")
    assert {"torch", "torchvision", "pyarrow", "tensorboard"} <= set(pins)
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]
    assert f"FROM rayproject/ray:{pins['ray']}-" in (ROOT / "experiments/kuberay/Dockerfile").read_text()


QUANTITY = {"type": "string", "pattern": r"^[0-9.]+(m|Ki|Mi|Gi|Ti)?$"}
TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources"],
                        "properties": {
                            "resources": {
                                "type": "object",
                                "required": ["requests", "limits"],
                                "additionalProperties": {"type": "object", "additionalProperties": QUANTITY},
                            },
                            "envFrom": {"type": "array"},
                        },
                    },
                }
            },
        }
    },
}
PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["entrypoint", "rayClusterSpec"],
            "additionalProperties": False,
            "properties": {
                "entrypoint": {"type": "string"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
                "backoffLimit": {"type": "integer", "minimum": 0},
                "rayClusterSpec": {
                    "type": "object",
                    "required": ["headGroupSpec"],
                    "additionalProperties": False,
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "autoscalerOptions": {"type": "object"},
                        "authOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"mode": {"enum": ["token", "disabled"]}},
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "required": ["rayStartParams", "template"],
                            "additionalProperties": False,
                            "properties": {"rayStartParams": PARAMS, "template": TEMPLATE},
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["groupName", "rayStartParams", "template"],
                                "additionalProperties": False,
                                "properties": {
                                    "groupName": {"type": "string"},
                                    **{key: {"type": "integer"} for key in ("replicas", "minReplicas", "maxReplicas")},
                                    "rayStartParams": PARAMS,
                                    "template": TEMPLATE,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The part of KubeRay's RayJob (ray.io/v1) that the file uses, as its API reference documents it."""


def test_the_rayjob_has_the_structure_of_its_resource():
    jsonschema.validate(JOB, RAY_JOB)
    cluster = JOB["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    group = cluster["workerGroupSpecs"][0]
    assert cluster["enableInTreeAutoscaling"] and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_misspelt_key_would_be_found():
    wrong = copy.deepcopy(JOB)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAY_JOB)


def test_the_dockerfile_copies_only_what_is_there():
    lines = (ROOT / "experiments/kuberay/Dockerfile").read_text().splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith("#")]
    assert {words[0] for words in instructions} == {"FROM", "WORKDIR", "COPY", "RUN"}
    for words in instructions:
        if words[0] == "COPY":
            for path in [word for word in words[1:-1] if not word.startswith("--")]:
                assert (ROOT / path).exists(), path
