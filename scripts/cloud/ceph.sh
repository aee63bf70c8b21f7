# Ceph, for the switch CEPH: a monitor, a manager, and one OSD on a sparse file; without
# authentication. A backend is a pool of the same name.
# shellcheck shell=bash disable=SC2034  # read by devcloud

CEPH_PACKAGES=(ceph-mon ceph-mgr ceph-osd ceph-common python3-rados python3-rbd)

ceph_config() {
  mkdir -p "$ETC/ceph" "$DATA/ceph"
  [ -s "$DATA/ceph/fsid" ] || cat /proc/sys/kernel/random/uuid >"$DATA/ceph/fsid"
  [ -s "$DATA/ceph/osd" ] || cat /proc/sys/kernel/random/uuid >"$DATA/ceph/osd"
  cat >"$ETC/ceph/ceph.conf" <<C
[global]
fsid = $(<"$DATA/ceph/fsid")
mon host = [v2:$IP:3300,v1:$IP:6789]
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
admin socket = $RUN/\$name.asok
log file = $LOG/ceph-\$type.log
[mon.a]
mon data = $DATA/ceph/mon
[mgr.x]
mgr data = $DATA/ceph/mgr
mgr initial modules =
[osd.0]
osd data = $DATA/ceph/osd.0
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

ceph_() { timeout 60 ceph -c "$ETC/ceph/ceph.conf" "$@"; }

# once NAME COMMAND...: what a killed run half made is made again.
ceph_once() {
  local name=$1
  shift
  [ ! -f "$DATA/ceph/$name.made" ] || return 0
  "$@" >>"$LOG/ceph-made.log" 2>&1 || fail "no Ceph made; see $LOG/ceph-made.log"
  touch "$DATA/ceph/$name.made"
}

make_mon() {
  rm -rf "$DATA/ceph/mon"
  monmaptool --create --clobber --fsid "$(<"$DATA/ceph/fsid")" \
    --addv a "[v2:$IP:3300,v1:$IP:6789]" "$DATA/ceph/monmap" &&
    ceph-mon -c "$ETC/ceph/ceph.conf" --mkfs -i a --monmap "$DATA/ceph/monmap"
}

make_osd() {
  rm -rf "$DATA/ceph/osd.0"
  mkdir -p "$DATA/ceph/osd.0"
  ceph_ osd new "$(<"$DATA/ceph/osd")" 0 &&
    ceph-osd -c "$ETC/ceph/ceph.conf" --mkfs -i 0 --osd-uuid "$(<"$DATA/ceph/osd")"
}

make_pool() { ceph_ osd pool create "$1" 8 && rbd -c "$ETC/ceph/ceph.conf" pool init "$1"; } # NAME

make_pools() { make_pool local-1 && make_pool local-2; }

ceph_up() {
  ceph_once mon make_mon
  ensure ceph-mon && wait_for 60 ceph-mon
  mkdir -p "$DATA/ceph/mgr"
  ceph_once osd make_osd
  ensure ceph-mgr ceph-osd && wait_for 90 ceph-osd ceph-mgr
  ceph_once pools make_pools
  if on_rbd_store; then ceph_once images make_pool images; fi
}

on_rbd_store() { on CEPH && on RBD_STORE; }

rbd_store() { # of Glance
  cat <<C
[rbd]
store_description = the pool images
rbd_store_pool = images
rbd_store_ceph_conf = $ETC/ceph/ceph.conf
rbd_store_user = admin
rbd_store_chunk_size = 8
C
}

ceph_backend() { # NUMBER: where it keeps its volumes
  cat <<C
volume_driver = cinder.volume.drivers.rbd.RBDDriver
rbd_pool = local-$1
rbd_ceph_conf = $ETC/ceph/ceph.conf
C
}
