"""What a load asks for beside the engines: replicas, proxies, PostgreSQL, disk. Pure; `heliotrope plan` prints it.

Each figure is a cost times how often it occurs. The costs of requests and of completions' bytes were measured
(`tests/benchmarks/scaling.py` and `planning.py`; k8s/README.md says where); those marked as assumed were not. The engines'
own pace is given, for it is the model's and the GPU's.

    commits a second = replicas * r / (1 + r c)

with r requests a second of a replica and c seconds of a commit: who arrives while a commit is under way waits and goes
with the next (`postgres/group_commit.py`), so a quiet replica commits each answer and a busy one 1/c times a second.

    pages of an index written whole between two checkpoints = N (1 - exp(-n / N))

with N pages and n entries at random places: PostgreSQL logs a page as a whole when it is first changed after a checkpoint
(full_page_writes), and completions are found by ids and digests, which are random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from serving.settings import Ingress

# CPU seconds of each process for one request, with four replicas, on a core of the machine that k8s/README.md names.
CHAT_REPLICA_SECONDS = {"python": 0.0054, "haproxy": 0.0021}
VOTE_REPLICA_SECONDS = {"python": 0.0055, "haproxy": 0.0019}
PROXY_SECONDS = {"python": 0.0039, "haproxy": 0.0002}
CHAT_POSTGRES_SECONDS, VOTE_POSTGRES_SECONDS = 0.0003, 0.0011
VOTE_CONDUCTOR_SECONDS = 0.0011  # to match it; there is one Conductor
BUSY = 0.6  # share of a core up to which a process is asked to work: what comes in bursts must not wait
COMMIT_SECONDS = 0.003  # of a group of answers, on a disk that keeps up; assumed
CONNECTIONS_A_REPLICA = 8  # its pool, and the lines of its log, its leases and its reads: `postgres/sessions.py`

# Bytes of one completion with one choice, as they lie on disk, and in the log of changes that replicas and backups read.
ROW_BYTES, BYTES_A_TOKEN = 660.0, 7.6  # of the prompt and of the answer: some four characters, and four bytes of its id
INDEX_BYTES = 444.0
RANDOM_INDEX_BYTES = 89.0, 89.0, 124.0, 9.0  # of those: two by id, one by app and digest, one by user
PAGE_BYTES, PAGE_FILLED = 8192, 0.7  # what is free of a page is not logged
CHECKPOINT_SECONDS = 300.0  # checkpoint_timeout; max_wal_size must let so much pass
VOTE_BYTES, VOTE_WAL_BYTES = 900.0, 4600.0  # the first is assumed
DELETED_A_SECOND = 12_800.0  # completions, by the sweeper's DELETE, on a machine that has little else to do

# Beyond these one primary is no longer a plan; assumed of server hardware, with room to spare.
MOST_COMMITS_A_SECOND = 20_000
MOST_WAL_BYTES_A_SECOND = 200e6
MOST_POSTGRES_CORES = 64.0
MOST_CONNECTIONS = 2_000
SECONDS_A_DAY = 86_400
OBJECTS_A_ROUND = 12  # assumed: snapshot, reference, two checkpoints, reports, and the adapter's three files


@dataclass(frozen=True)
class Load:
    requests_per_second: float = 100.0
    votes_share: float = 0.05  # of the answers
    prompt_tokens: int = 500
    answer_tokens: int = 200
    answers_per_second: float = 5.0  # that the engine of one replica gives
    ingress: Ingress = "python"
    rounds_a_day: float = 1.0


@dataclass(frozen=True)
class Plan:
    load: Load
    completions: float  # that are kept
    replicas: int
    replicas_for_engines: int  # of those; more only where our own code asks for it
    proxies: float  # processes of Ray's proxy, one a node and of one core each; of HAProxy, cores
    conductor_cores: float
    postgres_cores: float
    connections: int
    commits_a_second: float
    wal_bytes_a_second: float
    row_bytes: float
    index_bytes: float
    vote_bytes: float
    seconds_kept: float  # until the number of completions is reached, and deletion has to keep up
    objects_a_year: float  # in the object store; completions are not among them

    @property
    def bytes_kept(self) -> float:
        return self.row_bytes + self.index_bytes + self.vote_bytes

    @property
    def limits(self) -> tuple[str, ...]:
        """Where the present design ends, and what to do then; empty where it does not."""
        return tuple(_limits(self))


def plan(load: Load, completions: float) -> Plan:
    chats, votes = load.requests_per_second, load.requests_per_second * load.votes_share
    for_engines = math.ceil(chats / load.answers_per_second)
    ingress = load.ingress
    for_code = math.ceil((chats * CHAT_REPLICA_SECONDS[ingress] + votes * VOTE_REPLICA_SECONDS[ingress]) / BUSY)
    replicas = max(for_engines, for_code, 1)
    return Plan(
        load=load,
        completions=completions,
        replicas=replicas,
        replicas_for_engines=for_engines,
        proxies=(chats + votes) * PROXY_SECONDS[ingress] / BUSY,
        conductor_cores=votes * VOTE_CONDUCTOR_SECONDS,
        postgres_cores=(chats * CHAT_POSTGRES_SECONDS + votes * VOTE_POSTGRES_SECONDS) / BUSY,
        connections=replicas * CONNECTIONS_A_REPLICA,
        commits_a_second=commits_a_second(chats, replicas) + commits_a_second(votes, replicas),
        wal_bytes_a_second=chats * wal_bytes(load, completions, chats * CHECKPOINT_SECONDS) + votes * VOTE_WAL_BYTES,
        row_bytes=completions * completion_bytes(load),
        index_bytes=completions * INDEX_BYTES,
        vote_bytes=completions * load.votes_share * VOTE_BYTES,
        seconds_kept=completions / chats,
        objects_a_year=365 * load.rounds_a_day * OBJECTS_A_ROUND,
    )


def commits_a_second(requests: float, replicas: int) -> float:
    """Of all replicas; `requests` a second come to all of them together."""
    of_one = requests / replicas
    return replicas * of_one / (1 + of_one * COMMIT_SECONDS)


def completion_bytes(load: Load) -> float:
    """Of a completion with its choice, without indexes. At most: PostgreSQL compresses what is longer than 2 kB, which
    takes a quarter off a prompt of 1,000 tokens."""
    return ROW_BYTES + (load.prompt_tokens + load.answer_tokens) * BYTES_A_TOKEN


def wal_bytes(load: Load, kept: float, since_checkpoint: float) -> float:
    """What the log of changes has of a completion: its row, its entries in the indexes, and whole pages of those.

    A mean over so many completions since a checkpoint, on top of those that are kept already.
    """
    pages = [kept * entry / PAGE_BYTES for entry in RANDOM_INDEX_BYTES]
    written_whole = sum(of_index * -math.expm1(-since_checkpoint / of_index) for of_index in pages)
    return completion_bytes(load) + INDEX_BYTES + written_whole * PAGE_BYTES * PAGE_FILLED / since_checkpoint


def _limits(plan: Plan) -> Iterator[str]:
    one_primary = (
        plan.commits_a_second > MOST_COMMITS_A_SECOND
        or plan.wal_bytes_a_second > MOST_WAL_BYTES_A_SECOND
        or plan.postgres_cores > MOST_POSTGRES_CORES
    )
    if one_primary:
        yield (
            "one PostgreSQL primary does not write that much. Split the traffic by app over deployments with a database "
            "each; or write the log in larger groups, one writer for many replicas, which is not built"
        )
    if plan.connections > MOST_CONNECTIONS:
        yield (
            f"{plan.connections:,} connections are more than one PostgreSQL takes: a pooler such as PgBouncer has to stand "
            "before it, which was not tried, and neither were more than eight replicas"
        )
    if plan.conductor_cores > BUSY:
        yield (
            f"votes are kept as they come, but one Conductor matches {BUSY / VOTE_CONDUCTOR_SECONDS:,.0f} a second, and falls "
            "behind: pairs are ready later. Matching by app in several processes is not built"
        )
    if plan.load.requests_per_second > BUSY * DELETED_A_SECOND:
        yield (
            f"retention deletes row by row, {BUSY * DELETED_A_SECOND:,.0f} completions a second beside such a load, and falls "
            "behind. It would take a table that is partitioned by time and whose partitions are dropped, which the present "
            "schema is not"
        )
    if plan.seconds_kept < SECONDS_A_DAY:
        yield (
            f"so many completions are reached after {plan.seconds_kept / 3600:.1f} hours, and the least that "
            "retention.completion_days keeps is a day. Plan for more of them, or log less: requests with store: false"
        )
    if plan.replicas > plan.replicas_for_engines:
        yield (
            "our own code takes more replicas than the engines do: its event loop has one core. Replicas of a smaller "
            "engine each cost the same"
        )
