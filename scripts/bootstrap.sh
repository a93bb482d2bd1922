# Shared by scripts/quickstart and scripts/test: make .venv complete, or find at once that it is.
# Plain POSIX sh. Expects $root; call `bootstrap runtime` or `bootstrap dev`.
# shellcheck shell=sh

# shellcheck disable=SC2154 # whoever sources this sets $root
venv=$root/.venv

# Everything an installation depends on. The path is part of it: a moved checkout is installed anew.
stamp() {
    printf '%s\n' "$root"
    cat "$root/pyproject.toml" "$root/aimo_node/__init__.py" \
        "$root/scripts/locks/build.txt" "$root/scripts/locks/runtime.txt" \
        "$root/scripts/standins/fastecdsa/pyproject.toml"
    if [ "$1" = dev ]; then cat "$root/scripts/locks/dev.txt"; fi
}

is_installed() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/.aimo-sound" ] && [ -f "$venv/.aimo-stamp-$1" ] &&
        stamp "$1" | cmp -s - "$venv/.aimo-stamp-$1"
}

# 0: a Python we have wheels for; 1: too old; 2: too new; 127 and others: not there.
judge_python() {
    "$1" -c 'import sys
v = sys.version_info
sys.exit(1 if v < (3, 11) else 2 if v >= (3, 14) else 0)' >/dev/null 2>&1
}

# Sets $python to the first suitable interpreter, one with its venv module if there is one.
find_python() {
    python='' too_new=''
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3; do
        verdict=0
        judge_python "$candidate" || verdict=$?
        if [ "$verdict" = 2 ]; then too_new=yes; fi
        if [ "$verdict" != 0 ]; then continue; fi
        if "$candidate" -c 'import ensurepip, venv, ssl' >/dev/null 2>&1; then
            python=$candidate
            return 0
        fi
        python=${python:-$candidate}
    done
    if [ -n "$python" ]; then return 0; fi # install.py names the package that is lacking
    explain_python >&2
    exit 1
}

explain_python() {
    if [ -n "$too_new" ]; then
        echo 'The Python here is newer than the packages this project is locked to; 3.11, 3.12 or 3.13 is needed.'
    else
        echo 'Python 3.11, 3.12 or 3.13 is needed and was not found.'
    fi
    if [ "$(id -u)" = 0 ]; then sudo=''; else sudo='sudo '; fi
    if command -v apt-get >/dev/null; then
        line=$(apt_line)
    elif command -v dnf >/dev/null; then
        line="${sudo}dnf install -y python3.13 libgomp"
    elif command -v zypper >/dev/null; then
        line="${sudo}zypper install -y python313 libgomp1"
    elif command -v brew >/dev/null; then
        line='brew install python@3.13'
    elif command -v pacman >/dev/null; then
        line="${sudo}pacman -S --needed uv && uv python install 3.13"
    else
        line='install Python 3.13, or name one: PYTHON=/path/to/python3.13'
    fi
    printf 'Mend it with:  %s\n' "$line"
}

# Debian and Ubuntu carry one Python each; libgomp1 is what the embedded engine needs besides.
apt_line() {
    for version in 3.13 3.12 3.11; do
        if apt-cache show "python$version" 2>/dev/null | grep -q .; then
            echo "${sudo}apt-get install -y python$version python$version-venv libgomp1"
            return
        fi
    done
    if apt-cache show python3 2>/dev/null | grep -q .; then
        echo "${sudo}add-apt-repository -y ppa:deadsnakes/ppa &&" \
            "${sudo}apt-get install -y python3.13 python3.13-venv libgomp1"
    else
        echo "${sudo}apt-get update && ${sudo}apt-get install -y python3 python3-venv libgomp1"
    fi
}

bootstrap() {
    if is_installed "$1"; then return 0; fi
    find_python
    status=0
    trap : INT TERM HUP # install.py tidies up; wait for it
    if [ "$1" = dev ]; then
        "$python" "$root/scripts/install.py" --dev || status=$?
    else
        "$python" "$root/scripts/install.py" || status=$?
    fi
    if [ "$status" = 0 ]; then
        stamp "$1" >"$venv/.aimo-stamp.new" && mv "$venv/.aimo-stamp.new" "$venv/.aimo-stamp-$1"
    fi
    trap - INT TERM HUP
    if [ "$status" != 0 ]; then exit "$status"; fi
}
