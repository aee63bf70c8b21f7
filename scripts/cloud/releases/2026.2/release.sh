# What this release needs beyond its requirements.txt; sourced by devcloud.
# shellcheck shell=bash disable=SC2034  # read by the scripts that source this

# Python interpreters to try, first to last (3.11 is what the pins were made with).
PYTHONS=(python3.11 python3.12 python3.13 python3)

KEYSTONE_APP=keystone.wsgi.api:application
GLANCE_APP=glance.wsgi.api:application

# Further lines of gunicorn's configuration. The control socket would be put
# into the home directory of the user, outside of ours.
GUNICORN_EXTRA='control_socket_disable = True'
