"""The cloud: one class for all that the worker asks of Keystone, Glance and Cinder."""

from __future__ import annotations

from worker.openstack.cinder import Cinder
from worker.openstack.glance import Glance


class OpenStackCloud(Glance, Cinder):
    """`worker.core.cloud.Cloud` on a real one, over one session."""
