"""Shell scripts whose every step is checked, in namespaces that the caller makes or enters.

Role: one place that runs such a script, without input and for a limited time, and says what it
printed when a step of it has failed. `expect STATUS COMMAND...` in a script is one checked step.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

SECONDS_MAX = 170
EXPECT = """
set -u
expect() {
    wanted=$1; shift; "$@"; got=$?
    [ $got = $wanted ] || { echo "$* -> $got" >&2; exit 9; }
}
"""


def play(
    entering: Sequence[str], script: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script by a command that enters its namespaces; what it printed.

    Args:
        environment: of the command; None: this process's own.

    Raises:
        AssertionError: the script failed; with all that it has printed.
    """
    done = subprocess.run(
        [*entering, "sh", "-c", EXPECT + script],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done
