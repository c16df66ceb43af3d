# shellcheck shell=bash
# Sourced by scripts/test and scripts/quickstart: everything they need before they can start.
#
# Installs the Debian packages that are missing (and only then talks to apt), makes .venv at the
# top of the tree and installs shardfs into it with its development tools. Asks nothing; running
# it again costs well under a second. Leaves: $root (top of the tree, also the current directory),
# $bin ($root/.venv/bin), say() and fail(), and install_test_packages() for those who run tests.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
bin=$root/.venv/bin
cd -- "$root"

# shardfs refuses to run without assertions, and foreign packages would hide missing ones.
unset PYTHONOPTIMIZE PYTHONPATH PYTHONHOME
# A superuser's tools (losetup, mkfs) are not on every user's path.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

python_for_venv() { printf '%s' "${PYTHON:-python3}"; }

# Prints the Debian packages that provide what this machine lacks, one a line. Looks for the
# things themselves rather than for package names, so a hand-made install counts as well.
missing_packages() {
    local python version debian_python include
    python=$(python_for_venv)
    command -v fusermount3 >/dev/null || echo fuse3
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    command -v gcc >/dev/null || echo gcc
    [ -e /usr/include/stdlib.h ] || echo libc6-dev
    command -v setfattr >/dev/null || echo attr
    command -v setfacl >/dev/null || echo acl
    command -v losetup >/dev/null || echo mount
    command -v mountpoint >/dev/null || echo util-linux
    command -v git >/dev/null || echo git
    if ! command -v "$python" >/dev/null; then
        printf '%s\n' python3 python3-dev python3-venv
        return
    fi
    # For a Python beside Debian's own, Debian's headers and venv would be of no use.
    debian_python=$("$python" -c 'import sys; print(int(sys.base_prefix == "/usr"))')
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    if [ "$debian_python" = 1 ]; then
        [ -e "$include/Python.h" ] || echo "python$version-dev"
        "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
    fi
}

# Prints the Debian packages of programs that only tests run on a mount.
missing_test_packages() {
    local pair
    for pair in ccache:ccache fio:fio fish:fish make:make rclone:rclone rsync:rsync setpriv:util-linux \
        stress-ng:stress-ng tmux:tmux unzip:unzip zip:zip zsh:zsh; do
        command -v "${pair%:*}" >/dev/null || echo "${pair#*:}"
    done
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo postgresql
    [ -x /usr/bin/python3 ] || return 0
    /usr/bin/python3 -c 'import lmdb' 2>/dev/null || echo python3-lmdb
    /usr/bin/python3 -c 'import dbm.gnu' 2>/dev/null || echo python3-gdbm
}

# Installs them where that can be done. Where not, tests are skipped and name what they lack.
install_test_packages() {
    local packages=() no_server=/etc/postgresql-common/createcluster.d/shardfs-tests.conf
    mapfile -t packages < <(missing_test_packages)
    [ "${#packages[@]}" -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; }; then
        say "not installed, tests that need them are skipped: ${packages[*]}"
        return 0
    fi
    say "installing what tests run on a mount: ${packages[*]}"
    # The tests start servers of their own; Debian's package would start one for the machine.
    as_root mkdir -p "${no_server%/*}"
    echo 'create_main_cluster = false' | as_root tee "$no_server" >/dev/null
    apt_install "${packages[@]}" ||
        say "apt-get failed; tests that need these are skipped: ${packages[*]}"
    as_root rm -f "$no_server"
}

# Installs Debian packages, without questions.
apt_install() {
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update &&
        as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -q -y \
            -o DPkg::Lock::Timeout=300 --no-install-recommends install "$@"
}

# OpenStack Swift and an S3 client in .venv, and from Debian what they need beside them.
install_swift() {
    local packages=() policy=/usr/sbin/policy-rc.d
    command -v memcached >/dev/null || packages+=(memcached)
    command -v rsync >/dev/null || packages+=(rsync)
    if [ "${#packages[@]}" -gt 0 ]; then
        say "installing ${packages[*]}"
        # Debian's packages would start services for the machine; the demo starts its own.
        if [ -e "$policy" ]; then policy=; else
            printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
            as_root chmod 755 "$policy"
        fi
        apt_install "${packages[@]}" || say "apt-get failed; not installed: ${packages[*]}"
        [ -z "$policy" ] || as_root rm -f "$policy"
    fi
    install_extra swift swift boto3
}

# Installs one of the extras of pyproject.toml unless the modules named behind it are there.
install_extra() {
    local extra=$1 module
    shift
    for module in "$@"; do
        "$bin/python" -c "import $module" 2>/dev/null && continue
        say "installing shardfs[$extra] into .venv"
        "$bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
            -e "$root[$extra]"
        return
    done
}

install_packages() {
    local packages=()
    mapfile -t packages < <(missing_packages)
    [ "${#packages[@]}" -gt 0 ] || return 0
    say "installing Debian packages: ${packages[*]}"
    command -v apt-get >/dev/null ||
        fail "no apt-get here; install what these Debian packages hold, then run this again: ${packages[*]}"
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        fail "needs root once; run: sudo apt-get install ${packages[*]}"
    fi
    apt_install "${packages[@]}"
}

make_environment() {
    local python stamp wanted
    python=$(python_for_venv)
    "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' ||
        fail "shardfs needs Python 3.11 or newer, and $python is $("$python" -V 2>&1); set PYTHON=/path/to/python3.11"
    stamp=$root/.venv/.shardfs-installed
    # The path is part of it because scripts in .venv/bin name their interpreter in full.
    wanted=$(
        printf '%s\n' "$root"
        "$python" -V
        sha256sum <"$root/pyproject.toml"
    )
    if [ -f "$stamp" ] && [ "$(cat -- "$stamp")" = "$wanted" ] && "$bin/python" -c 'import shardfs' 2>/dev/null; then
        return 0
    fi
    say "installing shardfs and its tools into .venv"
    # A .venv that works and was not made elsewhere or by another Python is kept.
    if ! "$bin/python" -c 'import pip' 2>/dev/null ||
        [ "$("$bin/python" -V)" != "$("$python" -V)" ] ||
        { [ -e "$stamp" ] && [ "$(head -n 1 -- "$stamp")" != "$root" ]; }; then
        "$python" -m venv --clear "$root/.venv"
    fi
    "$bin/python" -m pip install --quiet --no-input --disable-pip-version-check -e "$root[dev]"
    printf '%s\n' "$wanted" >"$stamp"
}

# Two scripts started at once take turns; the lock goes with descriptor 9.
exec 9<"$root/scripts/setup.sh"
if command -v flock >/dev/null; then flock 9; fi
install_packages
make_environment
exec 9<&-
