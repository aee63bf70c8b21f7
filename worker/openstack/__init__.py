"""Everything that speaks to Keystone, Glance and Cinder."""
