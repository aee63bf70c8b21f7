# Debian packages and the release's virtual environment.
# shellcheck shell=bash

# Only the cores of MariaDB: its full packages bring a service of their own.
PACKAGES=(rabbitmq-server mariadb-server-core mariadb-client-core memcached
  qemu-utils xfsprogs curl ca-certificates)
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='# written by devcloud for the time of an apt-get'

installed() { # PACKAGE
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

find_python() { # the first of the release's interpreters that can make a venv
  local python PATH=$SYSTEM_PATH # not the one in the venv
  for python in "${PYTHONS[@]}"; do
    "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    command -v "$python"
    return 0
  done
  return 1
}

# Ours may be there still from a run that was killed.
remove_policy() { if grep -qsF "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi; }

# Keeps the packages' own services from starting now and at the next boot. A
# policy of the machine's own is left as it is.
forbid_services() {
  [ ! -e "$POLICY" ] || return 0
  printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
  chmod 755 "$POLICY"
}

apt_get() {
  # Maintainer scripts expect the usual umask.
  (umask 022 && DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$LOG/apt.log" 2>&1) ||
    fail "apt-get $1 failed; see $LOG/apt.log"
}

install_packages() {
  local missing=() package
  remove_policy
  for package in "${PACKAGES[@]}"; do installed "$package" || missing+=("$package"); done
  find_python >/dev/null || missing+=(python3 python3-venv)
  [ ${#missing[@]} -gt 0 ] || return 0
  forbid_services
  (umask 022 && dpkg --configure -a </dev/null >>"$LOG/apt.log" 2>&1) || true
  apt_get update
  apt_get install -y --no-install-recommends "${missing[@]}"
  if [ -e /run/systemd/system ]; then
    for package in "${missing[@]}"; do
      case $package in rabbitmq-server | memcached) systemctl -q disable "$package" || true ;; esac
    done
  fi
  remove_policy
}

# link_venv: the virtual environment of another home, if we are to use one. The link tells later runs.
link_venv() {
  local there
  if [ -n "${DEVCLOUD_VENVS:-}" ]; then
    there=$(readlink -m "$DEVCLOUD_VENVS")/venv-$RELEASE
    [ "$there" = "$VENV" ] || [ -d "$VENV" ] || ln -sfn "$there" "$VENV"
  elif [ -L "$VENV" ] && [ ! -e "$VENV" ]; then
    rm "$VENV" # the other home was wiped
  fi
}

install_venv() {
  local real
  real=$(readlink -m "$VENV")
  mkdir -p "$(dirname "$real")"
  # Two homes may want it at the same time.
  (flock 8 && make_venv "$real") 8>>"$real.lock"
  ln -sfn "$VENV/bin/openstack" "$HOME_DIR/bin/openstack"
}

make_venv() { # DIR
  local place=$1 python pins=$RELEASE_DIR/requirements.txt
  cmp -s "$pins" "$place/installed.txt" && return 0
  python=$(find_python) || fail "no Python with venv among: ${PYTHONS[*]}"
  stop_together cinder-volume cinder-scheduler cinder-api glance-api keystone
  # From nothing: what a killed run left may look complete and not be.
  rm -rf "$place"
  { "$python" -m venv "$place" &&
    "$place/bin/pip" install -q "$(grep -o '^uv==[^ ]*' "$pins")" &&
    # Compiled now, for the services would all do it at once at their first start.
    UV_CACHE_DIR=$HOME_DIR/uv-cache "$place/bin/uv" pip install --compile-bytecode \
      --python "$place/bin/python" -r "$pins"; } >"$LOG/python.log" 2>&1 ||
    fail "installing Python packages failed; see $LOG/python.log"
  cp "$pins" "$place/installed.txt"
}
