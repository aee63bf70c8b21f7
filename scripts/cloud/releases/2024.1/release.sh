# What this release needs beyond its requirements.txt; sourced by devcloud.
# shellcheck shell=bash disable=SC2034  # read by the scripts that source this

# The libraries of its time have no wheels for a later one.
PYTHONS=(python3.11)

KEYSTONE_APP='keystone.server.wsgi:initialize_public_application()'
GLANCE_APP='glance.common.wsgi_app:init_app()'
GUNICORN_EXTRA=''

# Without a New Location API Cinder finds an image's volumes only if Glance shows every reader where its data lies.
SWITCH[OLD_LOCATIONS]=1
