"""Several expositions as one: each series gets a label that says whose it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

SOURCE = "replica"  # the label


def merged(texts: Mapping[str, str]) -> list[Metric]:
    """`texts`: source -> its exposition in Prometheus' text format. A family that several have comes once.

    Raises `ValueError` for a text that is not in the format, and for sources that disagree on what a family is.
    """
    families: dict[str, Metric] = {}
    for source, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):  # when each series was made: twice as many series, for nobody
                continue
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if known.type != family.type:
                raise ValueError(f"{family.name} is a {known.type} and, of {source}, a {family.type}")
            known.samples += [_of(source, sample) for sample in family.samples]
    return [families[name] for name in sorted(families)]


def exposition(families: Iterable[Metric]) -> str:
    """In Prometheus' text format, version 0.0.4."""
    return generate_latest(cast(Any, _Fixed(families))).decode()


class _Fixed:
    """As a registry: the families that are there."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of(source: str, sample: Sample) -> Sample:
    assert SOURCE not in sample.labels, f"{sample.name} has a label of ours already"
    return sample._replace(labels={SOURCE: source, **sample.labels})
