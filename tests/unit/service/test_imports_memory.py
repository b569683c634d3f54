"""Large files on their way in: memory stays flat, and a full disk is a refusal. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LINES_MB = 60
_PROGRAM = """
import asyncio, json, resource, sys
from pathlib import Path
from service.errors import Unavailable
from service.exchange.imports import spooled, take_in
from service.store.store import Store

url, folder, kind, megabytes = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
ROWS, TEXT = 256, "word " * 400

def row(n):
    return {"prompt": f"question {n}", "chosen": f"{n} yes {TEXT}", "rejected": f"{n} no {TEXT}"}

async def lines(megabytes):
    for n in range(0, megabytes << 8, ROWS):  # 4 KiB a row
        yield "".join(json.dumps(row(n + i)) + "\\n" for i in range(ROWS)).encode()

def parquet(megabytes):
    import pyarrow as pa, pyarrow.parquet as pq
    file = folder / "pairs.parquet"
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for n in range(0, megabytes << 8, ROWS):
            writer.write_table(pa.Table.from_pylist([row(n + i) for i in range(ROWS)], schema=schema))
    return file

async def pieces(file):
    with file.open("rb") as opened:
        while piece := opened.read(1 << 16):
            yield piece

async def take(store, megabytes):
    arriving = lines(megabytes) if kind == "lines" else pieces(parquet(megabytes))
    async with spooled(arriving, folder / "spool") as file:
        return await take_in(file, store.imports, who="tess", dry_run=True)

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

async def main():
    store = Store(url)
    await take(store, 1)  # what is imported, pooled and cached once
    before_mb = peak_mb()
    outcome = await take(store, megabytes)
    await store.close()
    print(outcome.rows, outcome.added, peak_mb() - before_mb)

async def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))  # as a disk with 1 MB left
    try:
        async with spooled(lines(megabytes), folder / "spool"):
            print("spooled")
    except Unavailable as refusal:
        print(refusal.code, len(list((folder / "spool").iterdir())))

asyncio.run(full_disk() if kind == "full disk" else main())
"""


def run(url: str, folder: Path, kind: str, megabytes: int) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM, url, str(folder), kind, str(megabytes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize("kind", ["lines", "parquet"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(database_url: str, tmp_path: Path, kind: str) -> None:
    rows, added, grown_mb = run(database_url, tmp_path, kind, LINES_MB)
    assert int(rows) == int(added) == LINES_MB * 256
    assert float(grown_mb) < LINES_MB / 4


def test_a_full_disk_refuses_the_upload_and_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    assert run(database_url, tmp_path, "full disk", 4) == ["storage_unavailable", "0"]
