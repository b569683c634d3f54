"""The service on several nodes of one machine, as the manifests run it.

What Serve is told, the settings, the pods' environment and the way in are read from `k8s/`. What differs is what each pod
has of its own and this machine has once: ports, paths and sizes. No state is shared but PostgreSQL and the object store.

    python -m tests.many_nodes CONFIG.yaml ADDRESS      what KubeRay has the head do with a RayService
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from service import model
from service.settings import SEEDLING
from tests.conftest import free_port
from tests.edge import edge
from tests.external_database import external_database
from tests.fake_cluster import eventually
from tests.object_server import ObjectServer, object_server
from tests.ray_nodes import RayNodes, ray_nodes

K8S = Path(__file__).parents[1] / "k8s"
BUCKET = "heliotrope"
POD_CPUS = 2  # of a pod in the overlay `local`
SERVING = ("serving-0", "serving-1")  # nodes; one that is lost comes back under its name, with nothing on its disk
FIRST_KEY = f"hel_operator_{'0' * 12}_{'k' * 43}"
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class ManyNodes:
    nodes: RayNodes
    objects: ObjectServer
    doors: Mapping[str, int]  # ports of the edge
    proxies: Mapping[str, int]  # ports of the serving nodes
    app_key: str

    def client(self, door: str, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.app_key if door == 'chat' else FIRST_KEY}"}
        return httpx.Client(base_url=self.url(door), headers=headers, **{"timeout": 60, **options})

    def url(self, door: str) -> str:
        return f"http://127.0.0.1:{self.doors[door]}"

    def status(self) -> dict[str, Any]:
        with self.client("operations") as operator:
            return operator.get("/ops/status").raise_for_status().json()

    def ready(self) -> bool:
        """Every serving node answers, with what the route names."""
        status = self.status()
        wanted = {status["route"]["stable"]} - {"base"}
        loaded = [set(replica["loaded"]) for replica in status["replicas"]]
        return len(loaded) == len(SERVING) and all(wanted <= each for each in loaded)

    def start_serving(self, name: str) -> None:
        self.nodes.start(name, "serving", POD_CPUS, RAY_SERVE_WORKER_PROXY_HTTP_PORT=str(self.proxies[name]))

    def start_training(self) -> None:
        self.nodes.start("training", "training", POD_CPUS)


@contextmanager
def many_nodes(folder: Path, **settings: str) -> Iterator[ManyNodes]:
    """A head, two nodes that answer and one that learns. `settings`: HELIOTROPE_... in place of what the file says."""
    with ExitStack() as stack:
        places = {name: folder / name for name in ("postgres", "objects", "nodes", "edge")}
        for place in places.values():
            place.mkdir()
        store_url = stack.enter_context(external_database(places["postgres"], free_port()))
        objects = stack.enter_context(object_server(places["objects"], free_port(), BUCKET))
        secrets = {"store_url": store_url, "operator_key": FIRST_KEY}
        for name, secret in secrets.items():
            (folder / name).write_text(secret)
        own = {
            "HELIOTROPE_STATE": "state",  # in the folder of each node
            "HELIOTROPE_MODEL__NAME": str(model.resolve(SEEDLING)),
            "HELIOTROPE_SERVER__FIRST_KEYS__OPERATOR": str(folder / "operator_key"),
            "HELIOTROPE_STORE__URL_FILE": str(folder / "store_url"),
            "HELIOTROPE_ARTIFACTS__ENDPOINT": objects.endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(objects.credentials),
        }
        nodes = stack.enter_context(ray_nodes(places["nodes"], pod_environment() | own | settings))
        proxies = {name: free_port() for name in SERVING}
        pods = [f"127.0.0.1:{port}" for port in proxies.values()]
        doors = stack.enter_context(edge(places["edge"], pods))
        nodes.start_head()
        nodes.wait()
        cluster = ManyNodes(nodes, objects, doors, proxies, "")
        for name in SERVING:
            cluster.start_serving(name)
        cluster.start_training()
        nodes.wait()
        deploy(nodes, folder / "serve.yaml")
        eventually(cluster.ready)
        with cluster.client("operations") as operator:
            issued = operator.post("/ops/keys", json={"role": "app", "app": "shop"}).raise_for_status().json()
        yield ManyNodes(nodes, objects, doors, proxies, issued["secret"])


def ray_service() -> dict[str, Any]:
    """Of the manifests."""
    return next(iter(yaml.safe_load_all((K8S / "base" / "rayservice.yaml").read_text())))["spec"]


def pod_environment() -> dict[str, str]:
    pod = ray_service()["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {variable["name"]: variable["value"] for variable in pod["env"]}


def deploy(nodes: RayNodes, file: Path) -> None:
    """Both applications, from a process outside of all nodes. Raises when one of them does not start."""
    config = yaml.safe_load(ray_service()["serveConfigV2"])
    config["http_options"] = {
        "host": "127.0.0.1",
        "port": free_port(),
    }  # the head's; the others have ports of their own
    for application in config["applications"]:
        application["args"] = {"settings": str(K8S / "overlays" / "local" / "heliotrope.toml")}
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tests.many_nodes", str(file), nodes.address]
    done = subprocess.run(command, env=nodes.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def main() -> None:
    """As `ray/dashboard/modules/serve/serve_head.py` does when KubeRay sends it the configuration."""
    import ray
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    file, address = sys.argv[1:]
    config = ServeDeploySchema.model_validate(yaml.safe_load(Path(file).read_text()))
    ray.init(address, namespace="serve", log_to_driver=False)
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)
    while not all(each.status == "RUNNING" for each in serve.status().applications.values()):
        for name, each in serve.status().applications.items():
            if each.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise SystemExit(f"{name}: {each.message}")
        threading.Event().wait(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
