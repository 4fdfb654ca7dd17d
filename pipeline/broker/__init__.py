"""Everything Redis: keys, leases, commits, logs. The only room that imports redis (see README.md)."""
