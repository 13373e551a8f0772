# Sourced by setup_env.sh and setup_app.sh. pip_install PYTHON ARGUMENTS...: pip's messages are shown, and its last error
# is repeated in one line as the reason; of a page that could not be read at all, why.
pip_install() {
    pip_python=$1
    shift
    pip_messages=$(mktemp)
    pip_status=0
    "$pip_python" -m pip install --disable-pip-version-check "$@" 2>"$pip_messages" || pip_status=1
    cat "$pip_messages" >&2
    if [ "$pip_status" != 0 ]; then
        reason=$(grep -i '^error' "$pip_messages" | tail -n 1)
        unread=$(sed -n 's/^WARNING: Retrying (Retry(total=0,.* after //p' "$pip_messages" | tail -n 1)
        reason=${reason:-$(grep . "$pip_messages" | tail -n 1)}
        echo "error: packages could not be installed; pip says: ${unread:+$unread: }$reason" >&2
    fi
    rm -f "$pip_messages"
    return "$pip_status"
}
