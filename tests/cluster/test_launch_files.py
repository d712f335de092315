"""The files in cluster/ that nothing here can launch: read by Ray's own validators and, where they are, by KubeRay's.

$LINVT_KUBERAY_CRDS names a folder with ray.io_rayclusters.yaml, ray.io_rayjobs.yaml and ray.io_rayservices.yaml, as
published in ray-project/kuberay under ray-operator/config/crd/bases.
"""

import copy
import importlib
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from linvt.command import parse
from linvt.extraction.config import ExtractConfig
from linvt.training.config import TrainConfig
from pipelines.serve_application import build

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp")
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
CONFIG_OF_JOB = {"extract_features.py": ExtractConfig, "train.py": TrainConfig}


def _launcher_config(cloud: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())


def _manifest(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_up_takes_the_cluster_files(cloud):
    config = _launcher_config(cloud)
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config | {"max_wrokers": 3}))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cluster_starts_without_workers_and_is_closed(cloud):
    config = _launcher_config(cloud)
    types = config["available_node_types"]
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    assert {node["min_workers"] for node in workers.values()} == {0}
    assert "GPU" not in types[config["head_node_type"]]["resources"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    for name, node in workers.items():
        spot = json.dumps(node["node_config"])
        assert '"MarketType": "spot"' in spot or '"preemptible": true' in spot, f"{name} is not on spot machines"
    token = config["file_mounts"]["/home/ubuntu/.ray/auth_token"]
    assert token == "~/.ray/auth_token"
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    rules = config["provider"].get("security_group", {}).get("IpPermissions", [])
    assert all(rule["FromPort"] == rule["ToPort"] == 22 for rule in rules)


@pytest.mark.parametrize("path", sorted((CLUSTER / "iam").glob("*.json")), ids=lambda path: path.stem)
def test_rights_are_listed_one_by_one(path):
    for statement in json.loads(path.read_text())["Statement"]:
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert not [action for action in actions if "*" in action]
        # Where all resources are meant, either nothing can be changed or a condition says which.
        looks_only = all(":Describe" in action for action in actions)
        assert statement["Resource"] != "*" or looks_only or statement["Condition"]


def test_the_readme_explains_every_placeholder():
    readme = (CLUSTER / "README.md").read_text()
    files = [path for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".json", ".sh")]
    placeholders = {word for path in files for word in re.findall(r"REPLACE_[A-Z]+(?:_[A-Z]+)*", path.read_text())}
    assert placeholders
    assert {word for word in placeholders if f"`{word}`" not in readme} == set()


def test_shell_scripts_parse():
    for script in CLUSTER.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_name_this_ray_and_ask_for_a_token(path):
    spec = _manifest(path)["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            for variable in container.get("env", []):
                is_secret = re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"])
                assert not is_secret or "secretKeyRef" in variable["valueFrom"]


@pytest.mark.parametrize("path", [path for path in MANIFESTS if "rayjob" in path.name], ids=lambda path: path.stem)
def test_entrypoints_are_command_lines_that_the_jobs_take(path):
    python, script, *flags = shlex.split(_manifest(path)["spec"]["entrypoint"])
    assert python == "python"
    assert (CLUSTER.parent / "jobs" / Path(script).name).is_file()
    # It may be tried again on what a lost cluster left.
    assert parse(CONFIG_OF_JOB[Path(script).name], flags).on_existing == "resume"


def test_the_service_is_one_that_serve_can_deploy(monkeypatch):
    config = ServeDeploySchema(
        **yaml.safe_load(_manifest(CLUSTER / "kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    )
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert getattr(importlib.import_module(module), name) is build
    assert application.args["api_key_env"] == "LINVT_API_KEY"
    without_key = {name: value for name, value in application.args.items() if name != "api_key_env"}
    with pytest.raises(ValueError, match="api-key-env"):
        build(without_key)
    with pytest.raises(ValueError, match="unknown fields"):
        build(application.args | {"modle": "x"})
    monkeypatch.setenv("LINVT_API_KEY", "secret")
    model = CLUSTER.parent / "linvt/tiny/weights/video_llm"
    assert build(application.args | {"model": str(model)}) is not None


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_kuberays_definitions(path):
    folder = os.environ.get("LINVT_KUBERAY_CRDS")
    if folder is None:
        pytest.skip("needs LINVT_KUBERAY_CRDS: KubeRay's ray-operator/config/crd/bases")
    manifest = _manifest(path)
    definition = yaml.safe_load(Path(folder, f"ray.io_{manifest['kind'].lower()}s.yaml").read_text())
    version = manifest["apiVersion"].removeprefix(f"{definition['spec']['group']}/")
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version)
    validator = jsonschema.Draft202012Validator(_strict(schema))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    misspelt = manifest | {"spec": manifest["spec"] | {"rayClusterSepc": {}}}
    assert not validator.is_valid(misspelt)


def _strict(schema: Any) -> Any:
    """Kubernetes' dialect as JSON Schema: unknown fields are errors, as for `kubectl apply --validate=strict`."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        made["additionalProperties"] = False
        if "apiVersion" in schema["properties"] and "kind" in schema["properties"]:
            made["properties"]["metadata"] = {"type": "object"}
    return made
