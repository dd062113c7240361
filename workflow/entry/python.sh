# Sourced by ./reproduce-paper and ./run-tests: sets $python to an interpreter that is new enough.
# RESTOOL_PYTHON names one; otherwise 3.11 comes first, because the pinned versions were tested together on it.
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
python=
for candidate in ${RESTOOL_PYTHON:-python3.11 python3 python3.12 python3.13 python}; do
    if "$candidate" -c "$new_enough" >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$( (python3 --version || echo "no python3") 2>&1 | tail -n 1)
    echo "restool: Python 3.11 or newer is needed, found: ${RESTOOL_PYTHON:-$found};" \
        "install one, or name one with RESTOOL_PYTHON=/path/to/python3.11" >&2
    exit 2
fi
# Modules are installed without their compiled form and compiled when they are first imported. Where Python may not keep
# that, every job compiles thousands of them again: 14 seconds each.
unset PYTHONDONTWRITEBYTECODE
