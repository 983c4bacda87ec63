# Sourced by the other scripts; leaves the path of a ready environment's folder of programs in $bin.
#
#   set_up run    what the `tokvid` command needs
#   set_up dev    that, and all that the tests need
#
# TOKVID_VENV names the environment (default: .venv in the repository), PYTHON the interpreter that makes it (default:
# the first of python3, python3.13, python3.12, python3.11 that is 3.11 or newer), TOKVID_EXTRAS what else to install
# of pyproject.toml's optional dependencies, for example cuda12. A second run installs nothing.

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

_version() { # X.Y of an interpreter that is 3.11 or newer; fails for others, and for names that only look like one
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

_interpreter() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if _version "$candidate" >/dev/null; then
            echo "$candidate"
            return
        elif [[ -n "${PYTHON:-}" ]]; then
            echo "PYTHON=$PYTHON is not an interpreter of Python 3.11 or newer" >&2
            return 2
        fi
    done
    echo "tokvid needs Python 3.11 or newer: install one, or name it, as in PYTHON=/path/to/python3.12 $0" >&2
    return 2
}

set_up() {
    local mode="$1" venv="${TOKVID_VENV:-$root/.venv}" extras="${TOKVID_EXTRAS:-}" python version wanted began
    [[ "$venv" = /* ]] || venv="$PWD/$venv"
    bin="$venv/bin"

    # The stamp is written last: what it says is there is there, whole.
    version="$(_version "$bin/python")" || version=""
    if [[ -n "${PYTHON:-}" || -z "$version" ]]; then
        python="$(_interpreter)"
        [[ "$version" == "$(_version "$python")" ]] || version=""
    fi
    wanted="$root $extras $(cksum <"$root/pyproject.toml")"
    if [[ -n "$version" && "$wanted" == "$(cat "$venv/tokvid-dev" 2>/dev/null)" ]]; then return; fi
    if [[ -n "$version" && "$wanted" == "$(cat "$venv/tokvid-$mode" 2>/dev/null)" ]]; then return; fi

    if [[ -z "$version" ]]; then
        if [[ -e "$venv" && ! -f "$venv/tokvid-made" ]]; then # somebody else's: not ours to clear
            echo "$venv is there, but is no environment of $python: remove it, or name another TOKVID_VENV" >&2
            return 2
        fi
        mkdir -p "$venv"
        "$python" -m venv --clear "$venv" || python=""
        touch "$venv/tokvid-made"
        if [[ -z "$python" ]]; then
            echo "cannot make the environment $venv (on Debian and Ubuntu: apt install python3-venv)" >&2
            return 2
        fi
    fi
    echo "Installing into $venv: the first time this takes a minute or two ..." >&2
    began=$SECONDS
    rm -f "$venv/tokvid-run" "$venv/tokvid-dev"
    local pip=("$bin/python" -m pip install -qq --disable-pip-version-check --no-compile)
    if [[ "$mode" == dev ]]; then
        "${pip[@]}" "pip>=25.1" # the first that knows --group
        "${pip[@]}" --editable "$root[import,tensorboard,tfds,studio,docs${extras:+,$extras}]" --group "$root/pyproject.toml:dev"
    else
        "${pip[@]}" --editable "$root${extras:+[$extras]}"
    fi
    # pip would compile on one core; templates of packages that are no modules can't be compiled.
    "$bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages >/dev/null 2>&1 || true
    echo "$wanted" >"$venv/tokvid-$mode"
    echo "Installed in $((SECONDS - began)) s." >&2
}
