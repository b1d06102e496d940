#!/bin/sh
# odras.sh start|stop|restart|status: run the application that lies beside this file, in the background.
# Settings: app.env beside it, put into the environment too where it says ODRAS_EXPORT=yes. Log: odras_app.log, always appended to. Process: odras.pid.
# Started by root it runs everything as the owner of its directory.
set -eu

here=$(cd -- "$(dirname -- "$0")" && pwd -P)
cd -- "$here"
pid_file=$here/odras.pid
log=$here/odras_app.log

if [ "$(id -u)" -eq 0 ] && [ "$(stat -c %u .)" -ne 0 ]; then
    exec setpriv --reuid="$(stat -c %u .)" --regid="$(stat -c %g .)" --clear-groups -- ./odras.sh "$@"
fi

# True if the process in the pid file lives and is ours: pids are used again, and this one may be stale.
running() {
    [ -s "$pid_file" ] && read -r pid <"$pid_file" && [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$here" ]
}

start() {
    if running; then
        echo "ODRAS is running already: pid $pid"
        return
    fi
    python=$(sed -n 's/^ODRAS_PYTHON=//p' app.env)
    run=$(sed -n 's/^ODRAS_RUN=//p' app.env)
    read_settings=:
    if grep -qx 'ODRAS_EXPORT=yes' app.env; then
        read_settings='set -a; eval "$(grep -v ^ODRAS_ app.env)"; set +a'
    fi
    # A session of its own, so that `stop` can end this group and nothing else; and an environment of its
    # own, so that it starts the same whoever starts it.
    # shellcheck disable=SC2086 # several words are meant
    setsid env -i PATH="$PATH" HOME="$here" LC_ALL=C.UTF-8 \
        sh -c "$read_settings"'; exec "$@"' app "${python:-python3}" ${run:--m backend.main} \
        >>"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    echo "ODRAS started: pid $!"
}

# Wait up to $1 seconds until it no longer runs.
gone() {
    tries=$(($1 * 5))
    while running; do
        [ "$tries" -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.2
    done
}

stop() {
    if running; then
        kill -TERM "-$pid" 2>/dev/null || kill -TERM "$pid"
        if ! gone 10; then
            echo "ODRAS did not stop in 10 s: killing pid $pid" >&2
            kill -KILL "-$pid"
            gone 5
        fi
        echo "ODRAS stopped: pid $pid"
    else
        echo "ODRAS is not running"
    fi
    rm -f -- "$pid_file"
}

case ${1:-} in
start) start ;;
stop) stop ;;
restart)
    stop
    start
    ;;
status)
    if running; then
        echo "ODRAS is running: pid $pid"
    else
        echo "ODRAS is not running"
        exit 3
    fi
    ;;
*)
    echo "usage: odras.sh start|stop|restart|status" >&2
    exit 2
    ;;
esac
