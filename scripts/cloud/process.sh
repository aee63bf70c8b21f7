# Processes and ports: start, recognise and stop what is ours, and nothing else.
# shellcheck shell=bash

# A pid file holds "PID START BOOT": the start time (clock ticks since boot, from
# /proc/PID/stat) and the boot's id tell our process from a later one with the same
# number. Each daemon leads a session of its own, so the PID is the session's id too.

# stat_of PID: sets state, session and start of a process; false if there is none.
stat_of() {
  local line fields
  # Not $(<...): of a file that is not there it ends bash 5.2 under set -e.
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra fields <<<"${line##*) }"
  [ ${#fields[@]} -ge 20 ] || return 1
  state=${fields[0]} session=${fields[3]} start=${fields[19]}
}

# read_pid NAME: sets pid and started from a pid file of this boot.
read_pid() {
  local boot
  [ -s "$RUN/$1.pid" ] || return 1
  read -r pid started boot <"$RUN/$1.pid"
  [ "$boot" = "$(</proc/sys/kernel/random/boot_id)" ]
}

running() { # NAME
  local pid started state session start
  read_pid "$1" && stat_of "$pid" && [ "$start" = "$started" ] && [ "$state" != Z ]
}

# members NAME: process ids of its session, the leader's first.
members() {
  local pid started state session start entry leader=no
  read_pid "$1" || return 0
  if stat_of "$pid"; then
    # The kernel gives no number away while a session bears it: another process
    # under our number means that our session has ended.
    [ "$start" = "$started" ] || return 0
    [ "$state" = Z ] || { leader=yes && echo "$pid"; }
  fi
  for entry in /proc/[0-9]*; do
    entry=${entry#/proc/}
    stat_of "$entry" && [ "$session" = "$pid" ] && [ "$state" != Z ] && [ "$entry" != "$pid" ] || continue
    # Without a leader to vouch for them, they must at least live in our home.
    if [ $leader = no ]; then
      case $(readlink "/proc/$entry/cwd" || true) in "$HOME_DIR"/*) ;; *) continue ;; esac
    fi
    echo "$entry"
  done
}

spawn() { # NAME COMMAND...
  local name=$1
  shift
  stop "$name" # what a killed one left of its session
  echo "=== $(date -Is) $*" >>"$LOG/$name.log"
  # Not the lock (9): it is held as long as anything of this run lives.
  (cd "$RUN" && TMPDIR=$TMP exec setsid --fork "$HERE/detached" "$RUN/$name.pid" "$@") \
    </dev/null >>"$LOG/$name.log" 2>&1 9>&-
  local tries
  for ((tries = 0; tries < 1500; tries++)); do
    [ -s "$RUN/$name.pid" ] && return 0
    sleep 0.02
  done
  fail "$name did not start; see $LOG/$name.log"
}

# stop NAME: TERM to the leader, KILL to whatever of its session is left.
stop() {
  local name=$1 pid started grace=5 tries pids
  case $name in mariadb | rabbitmq | ceph-*) grace=30 ;; esac
  if running "$name" && read_pid "$name"; then
    kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < grace * 10; tries++)); do
      running "$name" || break
      sleep 0.1
    done
  fi
  pids=$(members "$name")
  while [ -n "$pids" ]; do
    # shellcheck disable=SC2086  # one word each
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
    pids=$(members "$name")
  done
  rm -f "$RUN/$name.pid"
}

stop_together() { # NAME...
  local name
  for name in "$@"; do stop "$name" & done
  wait
}

# kill_leftovers: the rest of services whose main process is gone.
kill_leftovers() {
  local name
  for name in "${ALL[@]}"; do
    running "$name" || stop "$name"
  done
}

memory() { # NAME: resident MiB of its whole session
  local pid sum=0 key value rest
  for pid in $(members "$1"); do
    while read -r key value rest; do
      [ "$key" = VmRSS: ] && sum=$((sum + value))
    done 2>/dev/null <"/proc/$pid/status" || true
  done
  echo $((sum / 1024))
}

# listener PORT: the inode of a socket that keeps us from 127.0.0.1:PORT, if any:
# one that listens (0A) on that address or on all, as IPv4 or as IPv6.
listener() {
  local port fields
  port=$(printf '%04X' "$1")
  while read -ra fields; do
    [[ ${fields[3]} == 0A && ${fields[1]} =~ ^(0{8}|0{32}|(0{16}FFFF0000)?0100007F):$port$ ]] || continue
    echo "${fields[9]}"
    return 0
  done < <(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null)
}

# owner INODE: "process PID (name)" that has the socket open.
owner() {
  local fd pid
  fd=$(find /proc/[0-9]*/fd -lname "socket:\[$1\]" -print -quit 2>/dev/null || true)
  pid=${fd#/proc/} pid=${pid%%/*}
  if [ -n "$pid" ]; then echo "process $pid ($(cat "/proc/$pid/comm" 2>/dev/null || true))"; else echo "a process that cannot be seen from here"; fi
}

# check_ports: fails, naming all of them, when a port we need is somebody else's.
check_ports() {
  local name port inode taken=0
  for name in "${ALL[@]}"; do
    running "$name" && continue
    for port in ${PORTS[$name]:-}; do
      inode=$(listener "$port")
      [ -n "$inode" ] || continue
      echo "devcloud: port $port, needed for $name, is taken by $(owner "$inode")" >&2
      taken=1
    done
  done
  [ $taken = 0 ] || exit 1
}

port_open() { # PORT
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
