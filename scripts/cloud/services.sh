# The services: how each starts, when it answers, what must be there before.
# shellcheck shell=bash

# ---- what runs before any service -------------------------------------------

pool() { # XFS with reflinks on a sparse file
  mkdir -p "$POOL"
  ! mountpoint -q "$POOL" || return 0
  if [ ! -f "$DATA/pool.img" ]; then
    truncate -s "${DEVCLOUD_POOL_GB:-60}G" "$DATA/pool.img.new"
    mkfs.xfs -q -f -m reflink=1 "$DATA/pool.img.new"
    mv "$DATA/pool.img.new" "$DATA/pool.img"
  fi
  mount -o loop,discard "$DATA/pool.img" "$POOL"
}

release_pool() { # every loop device and mount below our home, no other
  local device file where tries
  while read -r device file; do
    case $file in "$POOL"/*) losetup -d "$device" ;; esac
  done < <(losetup -l -n -O NAME,BACK-FILE 2>/dev/null)
  while read -r _ where _; do
    case $where in "$HOME_DIR"/*) ;; *) continue ;; esac
    # The kernel needs a moment to let go of what was killed just now.
    for ((tries = 0; tries < 50; tries++)); do
      umount "$where" 2>/dev/null && break
      sleep 0.1
    done
    ! mountpoint -q "$where" || fail "$where is in use by a process that is not ours"
  done < <(tac /proc/self/mounts)
  while read -r device file; do
    case $file in "$HOME_DIR"/*) losetup -d "$device" ;; esac
  done < <(losetup -l -n -O NAME,BACK-FILE 2>/dev/null)
}

sql() { mariadb --no-defaults -S "$RUN/mariadb.sock" -uroot -N --connect-timeout=5 "$@"; }

init_mariadb() {
  [ ! -d "$DATA/mariadb" ] || return 0
  rm -rf "$DATA/mariadb.new" "$DATA"/*.{schema,seeded}
  # MariaDB gives temporary tables names that it takes to be its own: two in one directory break each other
  mariadb-install-db --no-defaults --datadir="$DATA/mariadb.new" --tmpdir="$TMP" --user=root --skip-test-db \
    --auth-root-authentication-method=socket --auth-root-socket-user=root \
    >"$LOG/mariadb-install.log" 2>&1 ||
    fail "no database made; see $LOG/mariadb-install.log, which ends with: $(tail -n 3 "$LOG/mariadb-install.log")"
  mv "$DATA/mariadb.new" "$DATA/mariadb"
}

keystone_manage() { keystone-manage --config-file "$ETC/keystone/keystone.conf" "$@"; }

sync_schema() { # DATABASE
  case $1 in
    keystone)
      keystone_manage fernet_setup --keystone-user root --keystone-group root &&
        keystone_manage credential_setup --keystone-user root --keystone-group root &&
        keystone_manage db_sync &&
        OS_BOOTSTRAP_PASSWORD=$PASSWORD keystone_manage bootstrap --bootstrap-region-id RegionOne \
          --bootstrap-admin-url "$KEYSTONE" --bootstrap-internal-url "$KEYSTONE" \
          --bootstrap-public-url "$KEYSTONE"
      ;;
    glance) glance-manage --config-file "$ETC/glance/glance-api.conf" db_sync ;;
    cinder) cinder-manage --config-file "$ETC/cinder/cinder.conf" db sync ;;
  esac
}

databases() { # once for each release and set of pins, the three side by side
  local name jobs=() pins=$RELEASE_DIR/requirements.txt
  # Migrations cannot be taken up where a killed run left them.
  for name in keystone glance cinder; do
    [ -f "$DATA/$name.schema" ] && continue
    rm -f "$DATA"/*.seeded
    echo "drop database if exists $name;"
  done | sql
  for name in keystone glance cinder; do
    cmp -s "$pins" "$DATA/$name.schema" && continue
    echo "create database if not exists $name; grant all on $name.* to '$name'@'%' identified by '$PASSWORD';"
  done | sql
  for name in keystone glance cinder; do
    cmp -s "$pins" "$DATA/$name.schema" && continue
    { sync_schema "$name" >>"$LOG/$name-schema.log" 2>&1 && cp "$pins" "$DATA/$name.schema"; } &
    jobs+=($!)
  done
  for name in "${jobs[@]}"; do wait "$name" || fail "database migration failed; see $LOG/*-schema.log"; done
}

# seed STAGE: makes what is missing, unless this very seed.py has done so before.
seed() {
  cmp -s "$HERE/seed.py" "$DATA/$1.seeded" && return 0
  python "$HERE/seed.py" "$1" "$HOME_DIR" >"$LOG/seed-$1.log" 2>&1 || fail "no content made; see $LOG/seed-$1.log"
  cp "$HERE/seed.py" "$DATA/$1.seeded"
}

# ---- starting -----------------------------------------------------------------

launch() { # NAME: starts its processes, without waiting for an answer
  case $1 in
    epmd) spawn epmd env ERL_EPMD_ADDRESS="$IP" ERL_EPMD_PORT=4370 epmd -relaxed_command_check ;;
    rabbitmq) launch_rabbitmq ;;
    memcached) spawn memcached memcached -u root -l "$IP" -p 11211 -m 64 ;;
    mariadb)
      init_mariadb
      spawn mariadb mariadbd --defaults-file="$ETC/mariadb/my.cnf"
      ;;
    # keystone reads sys.argv, so gunicorn must get its arguments another way.
    keystone)
      spawn keystone env OS_KEYSTONE_CONFIG_FILES="$ETC/keystone/keystone.conf" \
        GUNICORN_CMD_ARGS="-c $ETC/keystone/gunicorn.py" gunicorn
      ;;
    ceph-mon*) spawn "$1" ceph-mon -c "$ETC/ceph${1#ceph-mon}/ceph.conf" -f -i a ;;
    ceph-mgr*) spawn "$1" ceph-mgr -c "$ETC/ceph${1#ceph-mgr}/ceph.conf" -f -i x ;;
    ceph-osd*) spawn "$1" ceph-osd -c "$ETC/ceph${1#ceph-osd}/ceph.conf" -f -i 0 ;;
    glance-api)
      spawn glance-api env PYTHONPATH="$HOME_DIR/driver" OS_GLANCE_CONFIG_DIR="$ETC/glance" \
        GUNICORN_CMD_ARGS="-c $ETC/glance/gunicorn.py" gunicorn
      ;;
    cinder-volume)
      # Nothing of Cinder's takes a service out of a cluster again
      on CLUSTER || sql cinder -e 'update services set cluster_name = null where cluster_name is not null'
      spawn "$1" env PYTHONPATH="$HOME_DIR/driver" "$1" --config-file "$ETC/cinder/cinder.conf" \
        --config-file "$ETC/cinder-backends/backends.conf"
      ;;
    cinder-*) spawn "$1" env PYTHONPATH="$HOME_DIR/driver" "$1" --config-file "$ETC/cinder/cinder.conf" ;;
  esac
  config_digest "$1" >"$RUN/$1.config"
}

launch_rabbitmq() {
  # A first start that was cut short can leave a half-made node database.
  [ -f "$DATA/rabbitmq.made" ] || rm -rf "$DATA/rabbitmq"
  mkdir -p "$DATA/rabbitmq"
  wait_for 10 epmd # or the broker starts a port mapper of its own that we don't know of
  # RUNNING_UNDER_SYSTEMD makes the script exec Erlang, so that it gets our signals itself.
  spawn rabbitmq env HOME="$DATA/rabbitmq" ERL_CRASH_DUMP="$LOG/erl_crash.dump" \
    ERL_EPMD_ADDRESS="$IP" ERL_EPMD_PORT=4370 RUNNING_UNDER_SYSTEMD=1 \
    RABBITMQ_NODENAME=devcloud@localhost RABBITMQ_DIST_PORT=25672 RABBITMQ_NODE_IP_ADDRESS="$IP" \
    RABBITMQ_MNESIA_BASE="$DATA/rabbitmq/mnesia" RABBITMQ_LOGS=- RABBITMQ_LOG_BASE="$LOG" \
    RABBITMQ_CONFIG_FILE="$ETC/rabbitmq/rabbitmq.conf" RABBITMQ_CONF_ENV_FILE=/dev/null \
    RABBITMQ_ENABLED_PLUGINS_FILE="$ETC/rabbitmq/plugins" RABBITMQ_PID_FILE="$RUN/rabbitmq.own.pid" \
    RABBITMQ_SERVER_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none +S 2:2" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}" \
    /usr/lib/rabbitmq/bin/rabbitmq-server
}

config_digest() { # NAME: of all that its start depends on
  local files=()
  case $1 in
    mariadb | rabbitmq) files=("$ETC/$1") ;;
    ceph-*-2) files=("$ETC/ceph-2") ;;
    ceph-*) files=("$ETC/ceph") ;;
    keystone) files=("$ETC/keystone" "$VENV/installed.txt") ;;
    glance-api) files=("$ETC/glance" "$VENV/installed.txt") ;;
    cinder-volume)
      files=("$ETC/cinder" "$ETC/cinder-backends" "$VENV/installed.txt" "$HOME_DIR/driver/reflink_driver.py")
      ;;
    cinder-*) files=("$ETC/cinder" "$VENV/installed.txt") ;;
    *) files=(/dev/null) ;;
  esac
  # Python leaves bytecode beside gunicorn's configuration.
  find "${files[@]}" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 cat | sha256sum
}

current() { # NAME: it runs, and with the present configuration
  running "$1" && [ "$(config_digest "$1")" = "$(cat "$RUN/$1.config" 2>/dev/null)" ]
}

# stop_outdated NAME...: those that run with another configuration.
stop_outdated() {
  local name outdated=()
  for name in "$@"; do
    if running "$name" && ! current "$name"; then outdated+=("$name"); fi
  done
  stop_together "${outdated[@]}"
}

ensure() { # NAME...: launch those that don't run
  local name
  for name in "$@"; do
    running "$name" && continue
    launch "$name"
    STARTED+=" $name "
  done
}

# ---- answering ------------------------------------------------------------------

get() { curl -fsS -m 5 -o /dev/null "$@"; }

heartbeats() { # BINARY COUNT: so many have reported since their start
  local since
  since=$(stat -c %Y "$RUN/$1.pid") || return 1
  [ "$(sql cinder -e "set time_zone = '+00:00'; select count(*) from services
    where not deleted and \`binary\` = '$1'
      and updated_at >= greatest(from_unixtime($since), utc_timestamp() - interval 20 second)")" -ge "$2" ]
}

answers() { # NAME
  case $1 in
    epmd) port_open 4370 ;;
    memcached) port_open 11211 ;;
    mariadb) sql -e 'select 1' ;;
    rabbitmq)
      # Not on the command line, where everybody could read the password.
      port_open 5672 && get -K - "http://$IP:15672/api/whoami" <<<"user = \"openstack:$PASSWORD\""
      ;;
    ceph-mon*) ceph_ "${1#ceph-mon}" quorum_status ;;
    ceph-mgr*) ceph_ "${1#ceph-mgr}" mgr stat | grep -q '"available": true' ;;
    ceph-osd*) ceph_ "${1#ceph-osd}" osd stat | grep -q '1 up' ;;
    keystone) get "$KEYSTONE" ;;
    glance-api) get "$GLANCE/healthcheck" ;;
    cinder-api) get "$CINDER/healthcheck" ;;
    cinder-scheduler) heartbeats cinder-scheduler 1 ;;
    cinder-volume) heartbeats cinder-volume 2 ;;
  esac >/dev/null 2>&1
}

wait_for() { # SECONDS NAME...
  local until=$((SECONDS + $1)) name
  shift
  for name in "$@"; do
    until answers "$name"; do
      running "$name" || fail "$name has ended: $(tail -n 3 "$LOG/$name.log")
see $LOG/$name.log"
      [ $SECONDS -lt $until ] || fail "$name does not answer; see $LOG/$name.log, or try: devcloud restart $name"
      sleep 0.2
    done
  done
}

# ---- the OpenStack services -----------------------------------------------------

infrastructure() { ensure epmd mariadb memcached rabbitmq && wait_for 60 mariadb; }
rabbitmq_made() { wait_for 90 rabbitmq && touch "$DATA/rabbitmq.made"; }
identity() { ensure keystone && wait_for 60 keystone; }
cinder() { ensure cinder-api cinder-scheduler cinder-volume && wait_for 90 cinder-api; }
# With cinder stores, glance-api ends at its start when cinder-api does not answer.
glance() { ensure glance-api && wait_for 90 glance-api; }
backends() {
  wait_for 90 cinder-scheduler cinder-volume
  [[ $STARTED == *" cinder-"* ]] || return 0
  # The scheduler must have heard from them too.
  python "$HERE/seed.py" backends "$HOME_DIR" >"$LOG/backends.log" 2>&1 || fail "no backends; see $LOG/backends.log"
}
