# Writes every configuration file from the switches and from keystone's ids.
# shellcheck shell=bash

flag() { if [ "${SWITCH[$1]}" = 1 ]; then echo true; else echo false; fi; }
on() { [ "${SWITCH[$1]}" = 1 ]; }

login() { # USER PROJECT: how a service logs in
  cat <<C
auth_type = password
auth_url = $KEYSTONE
username = $1
password = $PASSWORD
project_name = $2
user_domain_name = Default
project_domain_name = Default
region_name = RegionOne
C
}

authtoken() { # USER
  cat <<C
[keystone_authtoken]
www_authenticate_uri = $KEYSTONE
memcached_servers = $IP:11211
service_token_roles = service
service_token_roles_required = true
$(login "$1" service)
C
}

messaging() {
  cat <<C
[oslo_messaging_notifications]
driver = messagingv2
topics = notifications
[oslo_concurrency]
lock_path = $DATA/locks
C
}

database() { # NAME
  printf '[database]\nconnection = mysql+pymysql://%s:%s@%s/%s\n' "$1" "$PASSWORD" "$IP" "$1"
}

gunicorn() { # APPLICATION PORT PROCESSES THREADS
  # keepalive: with the default of 2 s clients that keep connections meet resets.
  cat <<C
wsgi_app = '$1'
bind = '$IP:$2'
workers = $3
threads = $4
worker_class = 'gthread'
timeout = 3600
graceful_timeout = 5
keepalive = 75
$GUNICORN_EXTRA
C
}

mariadb_config() {
  # Written to the kernel at each commit, so a killed server loses nothing, but
  # never synced to the disk: only a crash of the whole machine could hurt.
  cat >"$ETC/mariadb/my.cnf" <<C
[mariadbd]
user = root
datadir = $DATA/mariadb
socket = $RUN/mariadb.sock
pid-file = $RUN/mariadb.own.pid
bind-address = $IP
port = 3306
max-connections = 500
character-set-server = utf8mb3
innodb-buffer-pool-size = 256M
innodb-flush-log-at-trx-commit = 2
innodb-flush-method = nosync
performance-schema = off
C
}

rabbitmq_config() {
  # Definitions are put right at every start; a default_user only at a first one
  # that nothing interrupts.
  cat >"$ETC/rabbitmq/rabbitmq.conf" <<C
listeners.tcp.default = $IP:5672
management.tcp.ip = $IP
management.tcp.port = 15672
load_definitions = $ETC/rabbitmq/definitions.json
C
  cat >"$ETC/rabbitmq/definitions.json" <<C
{
  "users": [{"name": "openstack", "password": "$PASSWORD", "tags": "administrator"}],
  "vhosts": [{"name": "/"}, {"name": "worker"}],
  "permissions": [
    {"user": "openstack", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
    {"user": "openstack", "vhost": "worker", "configure": ".*", "write": ".*", "read": ".*"}
  ]
}
C
  echo '[rabbitmq_management].' >"$ETC/rabbitmq/plugins"
}

keystone_config() {
  gunicorn "$KEYSTONE_APP" 5000 2 8 >"$ETC/keystone/gunicorn.py"
  # Its first requests, at once in several threads, race for making the database's engine; whichever process
  # lost kept a default of its own, an empty SQLite, and answered 500 from then on.
  cat >>"$ETC/keystone/gunicorn.py" <<'C'


def post_worker_init(worker):
    import sqlalchemy
    from keystone.common import sql

    with sql.session_for_read() as session:
        session.execute(sqlalchemy.text('select 1 from project'))
C
  cat >"$ETC/keystone/keystone.conf" <<C
$(database keystone)
[cache]
enabled = true
backend = dogpile.cache.memcached
memcache_servers = $IP:11211
[identity]
# The least that bcrypt takes: with the default of 12 each login costs a quarter of a second of processor time
password_hash_rounds = 4
[token]
provider = fernet
expiration = 86400
[fernet_tokens]
key_repository = $DATA/keystone/fernet
[credential]
key_repository = $DATA/keystone/credential
C
}

cinder_store() { # NAME VOLUME-TYPE
  cat <<C
[$1]
store_description = volumes of backend $2
cinder_volume_type = $2
cinder_catalog_info = block-storage:cinder:publicURL
cinder_store_auth_address = $KEYSTONE
cinder_store_user_name = internal
cinder_store_password = $PASSWORD
# Of 300 s: a broker's restart can swallow the making of a volume, and Glance then waits that long
cinder_state_transition_timeout = 60
cinder_store_project_name = internal
cinder_store_user_domain_name = Default
cinder_store_project_domain_name = Default
C
}

# least_privilege SERVICE: its rules for the user worker, made of the release's own defaults.
least_privilege() {
  on LEAST_PRIVILEGE || return 0
  "$VENV/bin/python" "$HERE/../policy.py" "$1" 2>"$LOG/policy-$1.log" || fail "no policy made; see $LOG/policy-$1.log"
}

odd_rules() { # SERVICE: the rules of the other switches; they win over those of least_privilege
  local admin=role:cloudadmin
  [ "$1" = glance ] || return 0
  if on LEAST_PRIVILEGE; then admin+=" or role:image_volume_worker"; fi
  if on SERVICE_ONLY; then echo '"service_api": "role:service"'; fi
  if on BLIND_ADMIN; then echo "\"context_is_admin\": \"$admin\""; fi
}

# policy SERVICE: its part of the configuration, and the file that this names.
policy() {
  local rules rule
  rules=$(least_privilege "$1")
  while read -r rule; do
    rules=$(grep -v "^${rule%%:*}:" <<<"$rules" || true)$'\n'$rule
  done < <(odd_rules "$1")
  rm -f "$ETC/$1/policy.yaml"
  [ -n "$rules" ] || return 0
  echo "$rules" >"$ETC/$1/policy.yaml"
  # The default since 2024.2
  printf '[oslo_policy]\npolicy_file = %s\nenforce_new_defaults = true\n' "$ETC/$1/policy.yaml"
}

glance_config() {
  local stores=file:file default=file
  if on_rbd_store; then
    stores=rbd:rbd,file:file default=rbd
    if [ "${SWITCH[CEPH]}" = 2 ]; then stores+=,rbd-2:rbd; fi
  elif on CINDER_STORES; then stores+=,cinder-1:cinder,cinder-2:cinder; fi
  if on TWIN_STORE; then stores+=,cinder-twin:cinder; fi
  gunicorn "$GLANCE_APP" 9292 1 16 >"$ETC/glance/gunicorn.py"
  cp "$VENV/etc/glance/glance-api-paste.ini" "$ETC/glance/"
  {
    cat <<C
[DEFAULT]
transport_url = $RABBIT
enabled_backends = $stores
enabled_import_methods = [glance-direct,web-download,copy-image]
show_multiple_locations = $(flag OLD_LOCATIONS)
show_image_direct_url = $(flag OLD_LOCATIONS)
do_secure_hash = $(flag SECURE_HASH)
delayed_delete = $(flag DELAYED_DELETE)
worker_self_reference_url = $GLANCE
public_endpoint = $GLANCE
node_staging_uri = file://$DATA/glance/staging
[paste_deploy]
flavor = keystone
config_file = $ETC/glance/glance-api-paste.ini
[glance_store]
default_backend = $default
[file]
filesystem_store_datadir = $DATA/glance/images
store_description = files on this machine
[os_glance_staging_store]
filesystem_store_datadir = $DATA/glance/staging
[os_glance_tasks_store]
filesystem_store_datadir = $DATA/glance/tasks
[import_filtering_opts]
allowed_ports = [80,443,8000,8080]
disallowed_hosts = []
allowed_hosts = [$IP,localhost]
C
    if on_rbd_store; then
      each_ceph rbd_store
    elif on CINDER_STORES; then
      cinder_store cinder-1 local-1 && cinder_store cinder-2 local-2
    fi
    if on TWIN_STORE; then cinder_store cinder-twin local-2; fi
    database glance
    messaging
    policy glance
    authtoken glance
  } >"$ETC/glance/glance-api.conf"
}

reflink_backend() {
  cat <<C
volume_driver = reflink_driver.ReflinkDriver
reflink_base = $POOL
reflink_clone_across_pools = $(flag CLONE_ACROSS)
reflink_pools = ${SWITCH[POOLS]}
reflink_clone_limit = ${SWITCH[CLONE_LIMIT]}
C
}

cinder_backend() { # NUMBER
  cat <<C
[local-$1]
volume_backend_name = local-$1
$(if on_ceph; then ceph_backend "$1"; else reflink_backend; fi)
image_upload_use_cinder_backend = $(flag UPLOAD_CLONE)
image_upload_use_internal_tenant = $(flag UPLOAD_INTERNAL)
image_volume_cache_enabled = $(flag IMAGE_CACHE)
image_volume_cache_max_count = ${SWITCH[CACHE_MAX]}
C
}

cinder_config() {
  # A backend tells the scheduler of itself when it starts, which the scheduler misses
  # when both start at once, and then again every periodic_interval: 60 s by default, and
  # the first time only after a random delay of up to 60 s more.
  # rpc_response_timeout: Glance's store asks five times for a detach that a killed
  # cinder-volume never answers, and holds the image's import lock as long.
  cp "$VENV"/etc/cinder/{api-paste.ini,resource_filters.json} "$ETC/cinder/"
  {
    cat <<C
[DEFAULT]
# The scheduler remembers a cluster for as long as it runs: CLUSTER=$(flag CLUSTER)
# How a volume was made stands in lines of these, and only in those for debugging
default_log_levels = amqp=WARN,sqlalchemy=WARN,cinder.volume.flows.manager.create_volume=DEBUG,cinder.volume.volume_utils=DEBUG,cinder.volume.drivers.rbd=DEBUG
transport_url = $RABBIT
auth_strategy = keystone
host = cloudhost
my_ip = $IP
state_path = $DATA/cinder/state
image_conversion_dir = $DATA/cinder/conversion
api_paste_config = $ETC/cinder/api-paste.ini
resource_query_filters_file = $ETC/cinder/resource_filters.json
osapi_volume_listen = $IP
osapi_volume_workers = 1
glance_api_servers = $GLANCE
enabled_backends = local-1,local-2
default_volume_type = local-1
quota_volumes = -1
quota_snapshots = -1
quota_gigabytes = -1
report_interval = 2
service_down_time = 60
backend_stats_polling_interval = 3
periodic_interval = 2
periodic_fuzzy_delay = 0
rpc_response_timeout = 30
C
    if on DIRECT_URL; then echo "allowed_direct_url_schemes = cinder"; fi
    # Before the first start of keystone there are no ids yet.
    if on INTERNAL_TENANT && [ -s "$HOME_DIR/ids" ]; then cat "$HOME_DIR/ids"; fi
    database cinder
    printf '[coordination]\nbackend_url = file://%s\n' "$DATA/cinder/coordination"
    # A key for all, so that there can be encrypted volumes without a Barbican.
    printf '[key_manager]\nbackend = cinder.keymgr.conf_key_mgr.ConfKeyManager\nfixed_key = %064d\n' 0
    printf '[service_user]\nsend_service_user_token = true\n'
    login cinder service
    if on SERVICE_ROLES; then echo '[glance]' && login cinder service; fi
    messaging
    policy cinder
    authtoken cinder
  } >"$ETC/cinder/cinder.conf"
  # A file of their own: only cinder-volume reads them, so only it is started anew when one of their switches is set
  {
    if on CLUSTER; then printf '[DEFAULT]\ncluster = cloudcluster\n'; fi
    cinder_backend 1
    cinder_backend 2
  } >"$ETC/cinder-backends/backends.conf"
}

write_config() {
  mkdir -p "$ETC"/{mariadb,rabbitmq,keystone,glance,cinder,cinder-backends}
  if on_ceph; then each_ceph ceph_config; fi
  mariadb_config
  rabbitmq_config
  keystone_config
  glance_config
  cinder_config
  clouds_yaml >"$HOME_DIR/clouds.yaml"
}

project_of() { # USER: the project a user logs in to
  case $1 in
    admin | alice | bob | internal) echo "$1" ;;
    operator | nosvc | worker) echo internal ;;
    cinder | glance) echo service ;;
    *) usage_error "no such user: $1 (have: ${USERS[*]})" ;;
  esac
}

clouds_yaml() {
  local user
  echo "clouds:"
  for user in "${USERS[@]}"; do
    cat <<C
  $user:
    auth_type: password
    auth:
      auth_url: $KEYSTONE
      username: $user
      password: "$PASSWORD"
      project_name: $(project_of "$user")
      user_domain_name: Default
      project_domain_name: Default
    region_name: RegionOne
    identity_api_version: 3
    volume_api_version: 3
C
  done
}

openrc() { # USER
  local project
  project=$(project_of "$1")
  # These would win over what follows or contradict it.
  cat <<C
unset OS_CLOUD OS_TOKEN OS_ENDPOINT OS_USER_ID OS_PROJECT_ID OS_SYSTEM_SCOPE OS_TRUST_ID
unset OS_DOMAIN_ID OS_DOMAIN_NAME OS_USER_DOMAIN_ID OS_PROJECT_DOMAIN_ID OS_TENANT_ID OS_TENANT_NAME
export OS_AUTH_TYPE=password OS_AUTH_URL=$KEYSTONE OS_IDENTITY_API_VERSION=3
export OS_USERNAME=$1 OS_PASSWORD=$PASSWORD OS_PROJECT_NAME=$project
export OS_USER_DOMAIN_NAME=Default OS_PROJECT_DOMAIN_NAME=Default
export OS_REGION_NAME=RegionOne OS_INTERFACE=public OS_VOLUME_API_VERSION=3
case :\$PATH: in *:$HOME_DIR/bin:*) ;; *) export PATH=\$PATH:$HOME_DIR/bin ;; esac
C
}
