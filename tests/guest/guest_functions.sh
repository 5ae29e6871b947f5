# What jobs in the guest share; sourced by bash -eux. $T is the tape, $EXCHANGE the test's directory.
# shellcheck shell=bash

appears() { # a character device, once the SCSI layer has asked the drive everything
    timeout 60 sh -c "until [ -c $1 ]; do sleep 0.1; done"
}

fails() { # a command that must; "! command" would never end a job under -e
    if "$@"; then
        echo "this should have failed: $*" >&2
        return 1
    fi
}

reachable() { # a path that everybody may go to, also where root's home is on the way
    local path=$1
    while [ "$path" != / ]; do
        chmod a+x "$path"
        path=$(dirname "$path")
    done
}

odd_files() { # a directory with what archives like to get wrong, and some bulk out of $EXCHANGE/data
    mkdir -p "$1/d/e" "$1/empty directory"
    cp "$EXCHANGE/data" "$1/d/data"
    for n in 1 2 3 5 10 20 50; do head -c $((n * 9973)) "$EXCHANGE/data" >"$1/d/e/file $n"; done
    echo one >"$1/one name" && ln "$1/one name" "$1/another name" && ln -s "one name" "$1/link"
    mkfifo "$1/fifo"
    echo grün >"$1/grün ☃"
    truncate -s 3M "$1/hole"
    echo secret >"$1/secret" && chmod 4600 "$1/secret" && chown 1234:5678 "$1/secret"
    touch -d '2001-02-03 04:05:06.789012345' "$1/one name"
}

same() { # two trees, each seen from the other
    [ -z "$(rsync -aHAXc --delete --dry-run --itemize-changes "$1/" "$2/" | tee /dev/stderr)" ]
    [ -z "$(rsync -aHAXc --delete --dry-run --itemize-changes "$2/" "$1/" | tee /dev/stderr)" ]
}

restore_with_tar() { # a tape of one segment, into a new directory, as README.md says
    mkdir "$1"
    pushd "$1"
    mt -f $T setblk 0
    mt -f $T rewind
    tar -xvf $T | grep '^tapefs-label.json$'
    rm README.txt tapefs-label.json
    mt -f $T rewind
    mt -f $T fsf 1
    tar -b 1024 --xattrs '--xattrs-include=*' --acls --delay-directory-restore -xpf $T
    sha256sum --check .tapefs/segments/00000001.sha256 >sums
    [ "$(grep -c ': OK$' sums)" -ge 12 ]
    rm sums
    mt -f $T fsf 1
    tar -b 1024 -tf $T | grep '^.tapefs/catalog-.*sqlite.zst$'
    rm -r .tapefs
    popd
}
