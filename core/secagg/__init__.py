"""Secure aggregation: the coordinator learns a sum, and no site's own vector.

After Bonawitz et al. 2017 and, for many sites, Bell et al. 2020; docs/secure-aggregation.md says
what it promises and against whom. ``participant`` is a site's side, ``collector`` the
coordinator's; both work on messages and know neither HTTP nor disks.
"""
