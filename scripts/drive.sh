# Sourced by the scripts that download from Google Drive, which define fail MESSAGE.

# fetch FILE_ID FILE: downloads, and ends the script where nothing comes.
fetch() {
    command -v gdown > /dev/null || fail 'gdown is not installed (pip install gdown)'
    gdown "$1" -O "$2" || fail "the Drive does not give the file (see above); try again in a day"
    [ -s "$2" ] || fail 'nothing came from the Drive'
}
