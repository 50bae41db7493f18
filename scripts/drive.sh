# Sourced by the scripts that download from Google Drive, which define fail MESSAGE.

# fetch FILE_ID FILE: downloads a file; ends the script with the reason where that fails.
fetch() {
    command -v gdown > /dev/null || fail 'gdown is not installed (pip install gdown)'
    local log failed=no
    log=$(mktemp)
    # Standard error is both shown, for gdown draws its progress there, and kept, for it says why a download failed.
    { gdown "$1" -O "$2" 2>&1 >&3 | tee "$log" >&2; } 3>&1 || failed=yes
    local output
    output=$(tr -s '[:space:]' ' ' < "$log") # gdown breaks its lines anywhere
    rm -f "$log"
    if [ "$failed" = yes ]; then
        case $output in
            *'Failed to resolve'* | *'ame resolution'* | *'Name or service not known'* | *'etwork is unreachable'* | \
                *'Max retries exceeded'* | *'Connection refused'* | *'timed out'*)
                fail 'no network: the Drive cannot be reached (see above); run this again where it can' ;;
            *) fail 'the Drive does not give the file (see above), as when too many have fetched it; try again in a day' ;;
        esac
    fi
    [ -s "$2" ] || fail 'nothing came from the Drive'
}
