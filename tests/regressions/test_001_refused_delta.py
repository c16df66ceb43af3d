"""A refused delta stood in front of the next session's deltas, and hid them from recovery.

Found by killing a mount at random moments: a delta was whole on the device, its data was not, so
recovery refused it, but went on writing behind it. The next recovery ended at the refused delta.
"""

from __future__ import annotations

from shardfs.checking.power_cuts import Choice, Survivor
from shardfs.checking.simulated_device import SimulatedDevice
from tests.engine.stores import content, formatted, opened

VALUE = bytes(range(256)) * 20


async def cut_with_delta_but_without_data(device: SimulatedDevice) -> SimulatedDevice:
    """The device after a put whose delta survived a power cut and whose data did not."""
    async with opened(device) as store:
        await store.sync(await store.put(b"kept", VALUE))
        dependency = await store.put(b"lost", VALUE)
        states: list[SimulatedDevice] = []

        def observe(operation: object) -> None:
            point = device.power_cut_point()
            kinds = [each.kind for each in point.unflushed]
            if getattr(operation, "kind", "") == "flush" and kinds.count("write") == 2:
                # Two writes ride on this flush: find the delta by its kind byte.
                survivors: Choice = tuple(
                    Survivor(each.step) for each in point.unflushed if each.data[4:5] == b"\x03"
                )
                assert len(survivors) == 1
                states.append(device.after_power_cut(point, survivors))

        device.observer = observe
        await store.sync(dependency)
        device.observer = None
        return states[0]


async def test_what_follows_a_refused_delta_is_found() -> None:
    device = await cut_with_delta_but_without_data(await formatted(4, extent_bytes=128 * 1024))
    async with opened(device) as store:
        assert any("cut off" in note for note in store.notes), store.notes
        assert await content(store) == {b"kept": VALUE}
        await store.sync(await store.put(b"after", VALUE))
        killed = device.power_cut()
    async with opened(killed) as store:
        assert await content(store) == {b"kept": VALUE, b"after": VALUE}
