if grep -q @begin "$3"; then exec @PYTHON@ "$@"; fi
compiler=${2#--cc_path=}
shift 2
exec "$compiler" "$@"
