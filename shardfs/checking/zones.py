"""The rules of a sequential-write zone, and of requests in flight side by side.

Role: what a simulated device checks before it takes a request. Whoever breaks a rule is a bug in
the caller, so it is a SimulationError and no DeviceError.

Not here: the device's content and faults (simulated_device, faults).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shardfs.checking.power_cuts import Operation


class SimulationError(AssertionError):
    """The caller broke a rule of the device: a bug in the caller, never a device error."""


def require_at_pointer(
    zone_bytes: int, pointers: Mapping[int, int], offset: int, length: int
) -> None:
    """A write begins at its zone's write pointer, and stays within the zone."""
    zone, within = divmod(offset, zone_bytes)
    pointer = pointers.get(zone, 0)
    if within != pointer:
        raise SimulationError(
            f"write at byte {within} of zone {zone}, whose write pointer is at {pointer}"
        )
    if within + length > zone_bytes:
        raise SimulationError(f"write of {length} bytes crosses the end of zone {zone}")


def require_written(zone_bytes: int, pointers: Mapping[int, int], offset: int, length: int) -> None:
    """A read stays in front of the write pointers."""
    end = offset + length
    while offset < end:
        zone, within = divmod(offset, zone_bytes)
        last = min(end - offset + within, zone_bytes)
        pointer = pointers.get(zone, 0)
        if last > pointer:
            raise SimulationError(f"read to byte {last} of zone {zone}, written to {pointer}")
        offset += last - within


def require_alone(
    operation: Operation, in_flight: Iterable[Operation], zone_bytes: int | None
) -> None:
    """Nothing overlapping, and in a zone nothing at all, is in flight beside it."""
    for other in in_flight:
        overlap = (
            operation.offset < other.offset + other.length
            and other.offset < operation.offset + operation.length
        )
        same_zone = zone_bytes and operation.offset // zone_bytes == other.offset // zone_bytes
        if overlap or same_zone:
            raise SimulationError(f"{_words(operation)} while {_words(other)} is in flight")


def _words(operation: Operation) -> str:
    return f"{operation.kind} of {operation.length} bytes at byte {operation.offset}"
