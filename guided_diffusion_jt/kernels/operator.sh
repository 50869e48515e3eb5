if grep -q @begin "$3"; then exec "$MEDSEGDIFF_OPERATOR_PYTHON" "$@"; fi
compiler=${2#--cc_path=}
shift 2
exec "$compiler" "$@"
