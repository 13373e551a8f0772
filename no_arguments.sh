# Sourced by scripts that take no arguments, before they change the folder: --help prints their heading, anything else
# is refused, where it would start minutes of work.
if [ $# -gt 0 ]; then
    case $1 in -h | --help) code=0 ;; *) code=2 ;; esac
    [ "$code" = 0 ] || echo "error: $1: $(basename "$0") takes no arguments" >&2
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
    exit "$code"
fi
