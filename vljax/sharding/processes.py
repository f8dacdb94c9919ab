"""The processes of one run: how they find each other, and what they agree on."""

import ipaddress
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = 1800,
) -> None:
    """Makes this process one of a run's; before anything else asks JAX for devices.

    Without arguments JAX finds the others as SLURM, TPU pods, GKE or Open MPI tell of them.
    ``timeout`` is how many seconds the others may take to come. Raises ValueError.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler of SIGTERM would take the place of the loop's, see ``Vote``.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=timeout,
            coordinator_bind_address=_bind_address(coordinator),
        )
    except (ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0]
        if coordinator:
            raise ValueError(
                f"--coordinator={coordinator}: process {process} of {processes} could not join "
                f"within {timeout} s ({told}); start all of them, each with a --process of its own"
            ) from error
        raise ValueError(
            f"--distributed: found no job of SLURM, TPU, GKE or Open MPI here ({told}); give "
            "--coordinator HOST:PORT --processes N --process I"
        ) from error


def _bind_address(coordinator: str | None) -> str | None:
    """A loopback coordinator listens there alone; JAX would listen on every interface."""
    if coordinator is None:
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator: got {coordinator}, expected HOST:PORT")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        loopback = False
    if not loopback:
        return None
    return f"127.0.0.1:{port}" if host == "localhost" else coordinator


def is_first() -> bool:
    """Whether this process is the one that writes logs, pictures and weights."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Returns when every process has come to the ``point`` of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def first_alone(point: str, work: Callable[[], object]) -> None:
    """Process 0 does ``work``, and the others go on when it is done."""
    if is_first():
        work()
    wait_for_all(point)


def told_by_first(number: Callable[[], int]) -> int:
    """What process 0 finds, in all processes."""
    found = number() if is_first() else 0
    if jax.process_count() == 1:
        return found
    return int(multihost_utils.broadcast_one_to_all(np.int32(found)))


class Vote:
    """The highest number that any process names, told to all of them at the same step."""

    def __init__(self, mesh: Mesh):
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = mesh.size
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def cast(self, number: int) -> Callable[[], int]:
        """Sends this process's number; what is returned waits for the others'."""
        if jax.process_count() == 1:
            return lambda: number
        mine = np.full(1, number, np.int32)
        numbers = jax.make_array_from_callback((self._devices,), self._each, lambda _: mine)
        highest = self._highest(numbers)
        return lambda: int(highest)
