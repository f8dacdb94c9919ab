"""Prometheus metrics of one server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """In a registry of their own, so that several servers fit into one process (as in tests)."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "vljax_requests", "HTTP requests", ["route", "status"], registry=registry
        )
        self.refused = Counter(
            "vljax_refused", "Requests refused, by reason", ["code"], registry=registry
        )
        self.left = Counter(
            "vljax_clients_left", "Answers that their client left", registry=registry
        )
        self.tokens = Counter("vljax_answer_tokens", "Tokens answered", registry=registry)
        self.file_bytes = Counter("vljax_file_bytes", "Bytes of files decoded", registry=registry)
        self.batches = Histogram(
            "vljax_batch_size",
            "Questions answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.decoding = Histogram(
            "vljax_decoding_seconds", "One file's decoding", buckets=SECONDS, registry=registry
        )
        self.first = Histogram(
            "vljax_first_piece_seconds",
            "From a question to the first piece of its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "vljax_answer_seconds", "From a question to its end", buckets=SECONDS, registry=registry
        )

    def watch(self, name: str, told: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for when it is read."""
        Gauge(name, told, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
