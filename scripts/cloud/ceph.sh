# Ceph, for the switch CEPH: a monitor, a manager, and one OSD on a sparse file; without
# authentication. A backend is a pool of the same name. With CEPH=2 there are two such clusters, as
# of two sites: the second one, whose files and services end in -2, has the backend local-2.
# shellcheck shell=bash disable=SC2034  # read by devcloud

CEPH_PACKAGES=(ceph-mon ceph-mgr ceph-osd ceph-common python3-rados python3-rbd)

on_ceph() { [ "${SWITCH[CEPH]}" -gt 0 ]; }
each_ceph() { # COMMAND...: with the end of each cluster's names as the last argument
  "$@" ""
  if [ "${SWITCH[CEPH]}" = 2 ]; then "$@" -2; fi
}
ceph_of() { if [ "${SWITCH[CEPH]}" = 2 ] && [ "$1" = 2 ]; then echo -2; fi; } # BACKEND

ceph_config() { # CLUSTER
  local own=$DATA/ceph$1 ports="[v2:$IP:3300,v1:$IP:6789]"
  if [ -n "$1" ]; then ports="[v2:$IP:3301,v1:$IP:6790]"; fi
  mkdir -p "$ETC/ceph$1" "$own"
  [ -s "$own/fsid" ] || cat /proc/sys/kernel/random/uuid >"$own/fsid"
  [ -s "$own/osd" ] || cat /proc/sys/kernel/random/uuid >"$own/osd"
  echo "$ports" >"$own/ports"
  cat >"$ETC/ceph$1/ceph.conf" <<C
[global]
fsid = $(<"$own/fsid")
mon host = $ports
mon initial members = a
public addr = $IP
cluster addr = $IP
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon data avail crit = 1
run dir = $RUN
admin socket = $RUN/\$name$1.asok
log file = $LOG/ceph-\$type$1.log
[mon.a]
mon data = $own/mon
[mgr.x]
mgr data = $own/mgr
mgr initial modules =
[osd.0]
osd data = $own/osd.0
osd objectstore = bluestore
osd memory target = 1073741824
bluestore block create = true
bluestore block size = $((${DEVCLOUD_POOL_GB:-60} * 1024 * 1024 * 1024))
bluestore block wal create = false
bluestore block db create = false
C
  # Of Debian's Python modules only these two, for the release's own Python.
  ln -sf /usr/lib/python3/dist-packages/{rados,rbd}.*.so "$HOME_DIR/driver/"
}

ceph_() { timeout 60 ceph -c "$ETC/ceph$1/ceph.conf" "${@:2}"; } # CLUSTER WORD...

# ceph_once CLUSTER NAME COMMAND...: what a killed run half made is made again.
ceph_once() {
  local made=$DATA/ceph$1/$2.made
  [ ! -f "$made" ] || return 0
  "${@:3}" "$1" >>"$LOG/ceph-made.log" 2>&1 || fail "no Ceph made; see $LOG/ceph-made.log"
  touch "$made"
}

make_mon() { # CLUSTER
  rm -rf "$DATA/ceph$1/mon"
  monmaptool --create --clobber --fsid "$(<"$DATA/ceph$1/fsid")" \
    --addv a "$(<"$DATA/ceph$1/ports")" "$DATA/ceph$1/monmap" &&
    ceph-mon -c "$ETC/ceph$1/ceph.conf" --mkfs -i a --monmap "$DATA/ceph$1/monmap"
}

make_osd() { # CLUSTER
  rm -rf "$DATA/ceph$1/osd.0"
  mkdir -p "$DATA/ceph$1/osd.0"
  ceph_ "$1" osd new "$(<"$DATA/ceph$1/osd")" 0 &&
    ceph-osd -c "$ETC/ceph$1/ceph.conf" --mkfs -i 0 --osd-uuid "$(<"$DATA/ceph$1/osd")"
}

make_pool() { ceph_ "$2" osd pool create "$1" 8 && rbd -c "$ETC/ceph$2/ceph.conf" pool init "$1"; } # NAME CLUSTER

make_pools() { make_pool local-1 "$1" && make_pool local-2 "$1"; } # CLUSTER

ceph_up() { # CLUSTER
  ceph_once "$1" mon make_mon
  ensure "ceph-mon$1" && wait_for 60 "ceph-mon$1"
  mkdir -p "$DATA/ceph$1/mgr"
  ceph_once "$1" osd make_osd
  ensure "ceph-mgr$1" "ceph-osd$1" && wait_for 90 "ceph-osd$1" "ceph-mgr$1"
  ceph_once "$1" pools make_pools
  if on_rbd_store; then ceph_once "$1" images make_pool images; fi
}

on_rbd_store() { on_ceph && on RBD_STORE; }

rbd_store() { # CLUSTER: a store of Glance
  cat <<C
[rbd$1]
store_description = the pool images
rbd_store_pool = images
rbd_store_ceph_conf = $ETC/ceph$1/ceph.conf
rbd_store_user = admin
rbd_store_chunk_size = 8
C
}

ceph_backend() { # NUMBER: where it keeps its volumes
  cat <<C
volume_driver = cinder.volume.drivers.rbd.RBDDriver
rbd_pool = local-$1
rbd_ceph_conf = $ETC/ceph$(ceph_of "$1")/ceph.conf
C
}
