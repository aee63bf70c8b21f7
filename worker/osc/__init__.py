"""`openstack image volume …`: what the daemon's commands tell, with anybody's own login.

A plug-in of python-openstackclient. It needs no configuration of the worker, and shows what Glance
and Cinder show to that login: an administrator sees all, an owner sees their own images.
"""
