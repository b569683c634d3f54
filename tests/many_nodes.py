"""The service on several nodes of one machine, as the manifests run it.

What Serve is told, the settings, the pods' environment and the way in are read from `k8s/`. What differs is what each pod
has of its own and this machine has once: ports, paths and sizes. No state is shared but PostgreSQL and the object store.

    python -m tests.many_nodes CONFIG.yaml ADDRESS      what KubeRay has the head do with a RayService
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import yaml
from ray import serve

from service import app, model
from service.app import Blueprint
from service.cluster import blueprint, settings_of
from service.contracts import Role
from service.settings import SEEDLING
from service.store.store import Store
from tests.adapter_files import FINGERPRINTS, write_adapter
from tests.conftest import free_port
from tests.edge import edge
from tests.external_database import external_database
from tests.fake_cluster import eventually, register
from tests.object_server import ObjectServer, object_server
from tests.ray_nodes import RayNodes, ray_nodes
from tests.remote_engine import Orders

K8S = Path(__file__).parents[1] / "k8s"
BUCKET = "heliotrope"
POD_CPUS = 2  # of a pod in the overlay `local`
SERVING = ("serving-0", "serving-1")  # nodes; one that is lost comes back under its name, with nothing on its disk
KEYS = {"chat": f"hel_app_{'a' * 12}_{'k' * 43}", "operations": f"hel_operator_{'b' * 12}_{'k' * 43}"}  # door -> key
TOKENS, TOKEN_SECONDS = 8, 0.005  # of the fake engine's answers
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class ManyNodes:
    folder: Path
    nodes: RayNodes
    store_url: str
    objects: ObjectServer
    doors: Mapping[str, int]  # ports of the edge
    proxies: Mapping[str, int]  # ports of the serving nodes

    def url(self, door: str) -> str:
        return f"http://127.0.0.1:{self.doors[door]}"

    def client(self, door: str) -> httpx.Client:
        return httpx.Client(base_url=self.url(door), headers={"authorization": f"Bearer {KEYS[door]}"}, timeout=300)

    def status(self) -> dict[str, Any]:
        with self.client("operations") as operator:
            return operator.get("/ops/status").raise_for_status().json()

    def ready(self) -> bool:
        """A replica on each serving node answers, with what the route names."""
        status = self.status()
        wanted = {status["route"]["stable"]} - {"base"}
        loaded = [set(replica["loaded"]) for replica in status["replicas"]]
        return len(loaded) == len(SERVING) and all(wanted <= each for each in loaded)

    def start_serving(self, name: str) -> None:
        self.nodes.start(name, "serving", POD_CPUS, RAY_SERVE_WORKER_PROXY_HTTP_PORT=str(self.proxies[name]))

    def start_training(self) -> None:
        self.nodes.start("training", "training", POD_CPUS)

    def deploy(self, *, fake: bool) -> None:
        """Both applications; a fake engine costs nothing and says in each word whose it is. Returns when they run."""
        args: dict[str, str] = {"settings": str(K8S / "overlays" / "local" / "heliotrope.toml")}
        config = yaml.safe_load(ray_service()["serveConfigV2"])
        config["http_options"] = {"host": "127.0.0.1", "port": self.proxies["head"]}
        for application in config["applications"]:
            application["args"] = args | ({"orders": str(self.folder / "orders")} if fake else {})
            if fake:
                application["import_path"] = application["import_path"].replace("service.cluster:", f"{__name__}:")
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", __name__, str(self.folder / "serve.yaml"), self.nodes.address]
        done = subprocess.run(command, env=self.nodes.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        eventually(self.ready)

    def publish(self, ordinal: int) -> str:
        """The name of an adapter for the fake engine, which came from outside."""
        files = write_adapter(self.folder / "adapters" / str(ordinal), ordinal)
        address = f"{BUCKET}/artifacts/adapters/{files.name}"
        self.objects.files().put(f"{files.directory}/", f"{address}/", recursive=True)

        async def record() -> None:
            store = Store(self.store_url)
            try:
                await register(store, {ordinal: files}, at=f"s3://{address}")
            finally:
                await store.close()

        asyncio.run(record())
        return files.name


@contextmanager
def many_nodes(folder: Path, **settings: str) -> Iterator[ManyNodes]:
    """A head, two nodes that answer and one that learns; nothing is deployed. `settings`: beside what the file says,
    or in place of it."""
    with ExitStack() as stack:
        places = {name: folder / name for name in ("postgres", "objects", "nodes", "edge", "orders")}
        for place in places.values():
            place.mkdir()
        store_url = stack.enter_context(external_database(places["postgres"], free_port()))
        objects = stack.enter_context(object_server(places["objects"], free_port(), BUCKET))
        own = _own(folder, store_url, objects)
        nodes = stack.enter_context(ray_nodes(places["nodes"], pod_environment() | own | settings))
        proxies = {name: free_port() for name in ("head", *SERVING)}
        pods = [f"127.0.0.1:{proxies[name]}" for name in SERVING]
        doors = stack.enter_context(edge(places["edge"], pods))
        cluster = ManyNodes(folder, nodes, store_url, objects, doors, proxies)
        nodes.start_head()
        with ThreadPoolExecutor() as pool:
            starts = [pool.submit(cluster.start_serving, name) for name in SERVING]
            starts.append(pool.submit(cluster.start_training))
        for start in starts:
            start.result()
        yield cluster


def _own(folder: Path, store_url: str, objects: ObjectServer) -> dict[str, str]:
    """What is mounted into pods, and where."""
    for name, secret in {"url": store_url, "app": KEYS["chat"], "operator": KEYS["operations"]}.items():
        (folder / name).write_text(secret)
    return {
        "HELIOTROPE_STATE": "state",  # in the folder of each node
        "HELIOTROPE_MODEL__NAME": str(model.resolve(SEEDLING)),
        "HELIOTROPE_SERVER__FIRST_KEYS__APP": str(folder / Role.APP),
        "HELIOTROPE_SERVER__FIRST_KEYS__OPERATOR": str(folder / Role.OPERATOR),
        "HELIOTROPE_STORE__URL_FILE": str(folder / "url"),
        "HELIOTROPE_ARTIFACTS__ENDPOINT": objects.endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": str(objects.credentials),
    }


def ray_service() -> dict[str, Any]:
    """Of the manifests."""
    return next(iter(yaml.safe_load_all((K8S / "base" / "rayservice.yaml").read_text())))["spec"]


def pod_environment() -> dict[str, str]:
    pod = ray_service()["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {variable["name"]: variable["value"] for variable in pod["env"]}


# --- in the cluster ---------------------------------------------------------------------------------------


def chat(args: dict[str, str]) -> serve.Application:
    """As `service.cluster:chat`. `args`: beside the settings, the folder of the engines' orders."""
    return app.chat(_with_fake_engine(args))


def operations(args: dict[str, str]) -> serve.Application:
    return app.operations(_with_fake_engine(args))


def _with_fake_engine(args: dict[str, str]) -> Blueprint:
    orders = Orders(Path(args["orders"]), TOKENS, TOKEN_SECONDS)
    real = blueprint(settings_of({"settings": args["settings"]}))
    return replace(real, engine=orders, fingerprints=FINGERPRINTS)


def main() -> None:
    """As `ray/dashboard/modules/serve/serve_head.py` does when KubeRay sends it the configuration."""
    import ray
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    file, address = sys.argv[1:]
    config = ServeDeploySchema.model_validate(yaml.safe_load(Path(file).read_text()))
    ray.init(address, namespace="serve", log_to_driver=False)
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)
    while any(each.status != "RUNNING" for each in serve.status().applications.values()):
        for name, each in serve.status().applications.items():
            if each.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise SystemExit(f"{name}: {each.message}")
        threading.Event().wait(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
