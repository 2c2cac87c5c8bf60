# Sourced by scripts/test and scripts/quickstart: enters the repository and its environment, .venv.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1  # nothing here may depend on a hub
unset PYTHONDONTWRITEBYTECODE  # else each process would compile the sources for itself

# setup EXTRAS: create .venv if there is none, install the package with EXTRAS unless that was done, activate it.
setup() {
    local extras=$1 stamp=.venv/installed-$1 wanted
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    [[ -x .venv/bin/pip ]] || "$(find_python)" -m venv .venv
    source .venv/bin/activate
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        echo "installing nestling[$extras] into .venv"
        # Compiling all of it, as pip would, takes as long as the installation; Python compiles what is imported.
        local install=(pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt)
        # torch first: the build that is at hand for the pinned version, rather than the newest one.
        "${install[@]}" torch
        "${install[@]}" -e ".[$extras]"
        echo "$wanted" > "$stamp"
    fi
}

find_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "error: no Python 3.11 or newer on the PATH; install one and run this again" >&2
    return 1
}
